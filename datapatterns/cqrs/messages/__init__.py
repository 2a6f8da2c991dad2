"""Messages that projections emit: a table they are stored in, and relays that pass them on."""
