"""The file formats of pictures that are decoded, and the largest picture."""

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "ICO": (".ico",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
"""the formats that are decoded, by Pillow's names, and their usual suffixes. No decoder of them starts another program,
as that of PostScript does. TGA is last because its files have no signature"""
MAX_PIXELS = 89_478_485
"""an image with more pixels is an error, as a few kB can unpack to gigabytes; Pillow warns beyond this number. The
images that all threads decode at a time have no more pixels either"""
MAX_FILE = 1 << 30
"""bytes of the largest file; some decoders read files as a whole"""
