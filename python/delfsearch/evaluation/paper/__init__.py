"""The paper's tables as presets: what they print, the sets and systems they need, running them."""
