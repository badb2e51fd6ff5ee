"""Files: only regular ones are read, all are written as a whole, and names are shown without control characters."""
