"""One module for each task: how a request becomes token rows and how rows become an answer."""
