"""What `openk2` commands do that belongs to no stage: counts, audits, samples, the proof of resume."""
