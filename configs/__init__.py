"""Typed, frozen configuration, its loader, and the TOML presets that ship."""
