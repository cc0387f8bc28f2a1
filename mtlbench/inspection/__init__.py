"""What a run learned, as pictures with their numbers; and what architectures cost."""
