"""Making the lower layers oneself: without labels, with other labels, or from a teacher."""
