//! Real servers, a fault proxy and waits for tests; never shipped.
