"""How generators are judged: distances between sets of points, in numpy on the host. No model is known here."""
