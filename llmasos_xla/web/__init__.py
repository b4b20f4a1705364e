"""What the package's pages and servers share.

listening    sockets that listen, and why one cannot
pages        what a page is sent with, so that it runs its own script and no other
"""
