"""Sources of images: the embedded digits, folders of pictures or arrays, tables and data sets of the hub."""
