//! NowConnect's wire format and flow rules: no I/O, no clock, no async.
