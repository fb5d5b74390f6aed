"""Where reviews come from: files and folders, read row by row, with an error that names the row."""
