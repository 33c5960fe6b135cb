"""Plan of a run: its parameters, arithmetic, memory, communication, time and cost, without an accelerator."""
