"""What client and server both have to do with sockets: both may import it, and it imports neither."""
