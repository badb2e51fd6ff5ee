"""Pictures and arrays as files: decoding them, the meaning of their values, writing samples, grids."""
