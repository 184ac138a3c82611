//! How many connections there may be, all together and of one address.
//! In: connections that come. Out: a seat, which is free again when it is dropped; or why not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is there.
#[derive(Debug)]
pub(crate) struct Crowd {
    most: usize,
    of_one: usize,
    there: Mutex<There>,
}

#[derive(Debug, Default)]
struct There {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All seats are taken.
    All,
    /// This address has as many as one may have.
    Address,
}

impl Full {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::All => "full",
            Self::Address => "address",
        }
    }
}

/// One connection's right to be there.
#[derive(Debug)]
pub(crate) struct Seat {
    crowd: Arc<Crowd>,
    address: Option<IpAddr>,
}

impl Crowd {
    pub(crate) fn new(most: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, of_one, there: Mutex::default() })
    }

    /// Lets one more in; `None`: many come by this address, which is a proxy's.
    pub(crate) fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Seat, Full> {
        let mut there = self.there();
        if there.all >= self.most {
            return Err(Full::All);
        }
        if let Some(address) = address {
            let known = there.by_address.get(&address).copied().unwrap_or_default();
            if known >= self.of_one {
                return Err(Full::Address);
            }
            there.by_address.insert(address, known + 1);
        }
        there.all += 1;
        Ok(Seat { crowd: Arc::clone(self), address })
    }

    fn there(&self) -> MutexGuard<'_, There> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut there = self.crowd.there();
        there.all -= 1;
        let Some(address) = self.address else { return };
        if let Some(known) = there.by_address.get_mut(&address) {
            *known -= 1;
            if *known == 0 {
                there.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_seats_to_others_and_a_seat_that_was_left_is_free() {
        let (ada, bob) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        let crowd = Crowd::new(3, 2);
        let first = crowd.enter(ada).unwrap();
        let _second = crowd.enter(ada).unwrap();
        assert_eq!(crowd.enter(ada).unwrap_err(), Full::Address);
        let _third = crowd.enter(bob).unwrap();
        assert_eq!(crowd.enter(bob).unwrap_err(), Full::All);
        drop(first);
        drop(crowd.enter(ada).unwrap());
        assert!(crowd.enter(None).is_ok(), "a proxy has as many as there are");
        assert_eq!(crowd.there().by_address.len(), 2, "who has none is forgotten");
    }
}
