//! How much to ask a socket for at once.
//!
//! Large reads make bulk cheap: fewer system calls, and above all fewer wake-ups of the two ends for
//! each other. But whoever reads little is not to hold a large buffer, and a link for every agent of a
//! large hub reads little most of the time. So the size follows what reads bring.

/// The least room, in bytes: a frame of the usual size.
const LEAST: usize = 64 * 1024;
/// The most room, in bytes. Beyond, the caches of the processor lose more than the system calls win.
pub(crate) const MOST: usize = 512 * 1024;
/// So many reads in a row must leave half of the room before there is less of it.
const PATIENCE: u32 = 16;

/// The size of the next read.
#[derive(Debug)]
pub(crate) struct ReadSize {
    size: usize,
    small: u32,
}

impl ReadSize {
    pub(crate) fn new() -> Self {
        Self {
            size: LEAST,
            small: 0,
        }
    }

    /// Bytes to make room for.
    pub(crate) fn get(&self) -> usize {
        self.size
    }

    /// A read brought `bytes`, and would have brought more if it is `full`. True when the next one
    /// needs less room than this one.
    pub(crate) fn note(&mut self, bytes: usize, full: bool) -> bool {
        if full {
            self.size = (self.size * 2).min(MOST);
        } else if bytes < self.size / 2 && self.size > LEAST {
            self.small += 1;
            if self.small < PATIENCE {
                return false;
            }
            self.size /= 2;
            self.small = 0;
            return true;
        }
        self.small = 0;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_gets_room_and_whoever_becomes_quiet_gives_it_up() {
        let mut size = ReadSize::new();
        (0..10).for_each(|_| assert!(!size.note(size.get(), true)));
        assert_eq!(size.get(), MOST);
        // Small reads among large ones change nothing.
        for _ in 0..10 {
            (1..PATIENCE).for_each(|_| assert!(!size.note(100, false)));
            assert!(!size.note(MOST / 2, false));
        }
        assert_eq!(size.get(), MOST);
        let shrunk = (0..1000).filter(|_| size.note(100, false)).count();
        assert_eq!((shrunk, size.get()), (3, LEAST));
    }
}
