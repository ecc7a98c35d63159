"""One system on one set: features kept, an index built, every query asked, every answer kept."""
