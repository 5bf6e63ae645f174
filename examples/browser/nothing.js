// In place of Node's fs: a page has no files.
