"""Recurrence over time: `rnn`, `gru` and `lstm`."""
