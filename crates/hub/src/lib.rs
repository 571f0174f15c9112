//! The cloud side: listeners, admission, routing, tunnels.
