"""What ships in the box, through the same door as everyone else's plugins."""
