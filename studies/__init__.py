"""Is a motion share a sign that a network looked at motion? A study on clips whose motion is known: `make study`."""
