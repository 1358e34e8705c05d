"""Model editors behind one protocol; see `beliefedit.editors.base`."""
