"""What commands do around the library's calls: checks of what the user named, and settings of the process."""
