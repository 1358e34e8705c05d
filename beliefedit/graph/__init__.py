"""Knowledge graphs: formats, selection of relations, labels."""
