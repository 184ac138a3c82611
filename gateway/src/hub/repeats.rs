//! Which events of a replay had come before; pure.
//! In: ids with their offsets, in the order of several readers. Out: whether the same id stands
//! further back on the stream.

use std::collections::HashMap;
use std::sync::Arc;

use super::window::IDS;

/// Remembers at least the last [`IDS`] ids that were read, and at most twice as many.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// By id the lowest offset at which it was seen.
    recent: HashMap<Arc<str>, u64>,
    before: HashMap<Arc<str>, u64>,
}

impl Repeats {
    /// Notes an event, and says whether the same was seen further back. The same offset may be read
    /// any number of times.
    pub(crate) fn is_repeat(&mut self, id: &Arc<str>, offset: u64) -> bool {
        let before = self.before.get(id).copied().unwrap_or(offset).min(offset);
        let lowest = self.recent.entry(Arc::clone(id)).or_insert(before);
        *lowest = before.min(*lowest);
        let repeat = *lowest < offset;
        if self.recent.len() >= IDS {
            self.before = std::mem::take(&mut self.recent);
        }
        repeat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_stands_further_back_is_a_repeat_whoever_reads_it_first() {
        let mut repeats = Repeats::default();
        let id: Arc<str> = "id".into();
        for (offset, expected) in
            [(5, false), (5, false), (9, true), (5, false), (2, false), (5, true)]
        {
            assert_eq!(repeats.is_repeat(&id, offset), expected, "{offset}");
        }
    }

    #[test]
    fn an_id_that_is_read_again_is_not_forgotten_and_the_others_are() {
        let mut repeats = Repeats::default();
        let id = |n: usize| -> Arc<str> { n.to_string().into() };
        for n in 0..3 * IDS {
            assert!(!repeats.is_repeat(&id(n), n as u64 + 1));
            if n % 1_000 == 0 {
                assert!(!repeats.is_repeat(&id(0), 1));
            }
        }
        assert!(repeats.is_repeat(&id(0), 2));
        assert!(repeats.recent.len() + repeats.before.len() <= 2 * IDS);
        assert!(!repeats.is_repeat(&id(7), 4 * IDS as u64), "long forgotten");
    }
}
