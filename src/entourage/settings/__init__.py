"""What a site decides once: TOML, or the xend-config.sxp it still has."""
