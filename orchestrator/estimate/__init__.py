"""What a planned sweep will cost: seconds, memory, disk and downloads, from shapes and lengths."""
