"""The web page of `xsweep serve`: what is in the job table and in the store, to look at."""
