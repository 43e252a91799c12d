"""Everything that maps observation to action: hand policies, learned policies, rule tables."""
