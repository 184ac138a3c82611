//! How much a Socket.IO client has not taken yet.
//! In: bytes given to the library, bytes that the transport took. Out: whether more may be given,
//! which is not so while a session changes its transport.
//!
//! The library keeps up to so many packets, whatever their size, and does not say how many. So what
//! is given to it is counted here, and what comes out at its other end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time;

/// Bytes that may wait for a client. The one that goes beyond it is given all the same: it may be
/// larger than all of it.
const WINDOW: u64 = 256 * 1024;

/// What one transport was given and what it took.
#[derive(Debug, Default)]
pub(super) struct Flow {
    given: AtomicU64,
    taken: AtomicU64,
    /// [`Hold`]s that are there.
    held: AtomicUsize,
    moved: Notify,
}

/// As long as it is there, nothing more is given.
#[derive(Debug)]
pub(super) struct Hold(Arc<Flow>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        self.0.moved.notify_waiters();
    }
}

impl Flow {
    /// Something is about to be given. Rather too little than too much: what never comes out would
    /// keep its place for ever.
    pub(super) fn give(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// The transport took so much, with what the library adds.
    pub(super) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::SeqCst);
        self.moved.notify_waiters();
    }

    /// Waits for room; `false`: the client took nothing for too long.
    pub(super) async fn room(&self, slow: Duration) -> bool {
        self.until(|| !self.is_held() && self.waiting() < WINDOW, slow).await
    }

    /// Holds what is to come, and waits until the client has taken what was given, though not longer
    /// than told.
    ///
    /// Once the library upgrades a session, its polls bring nothing, and it waits for a place in its
    /// buffer: if that is full, until it gives up and ends the session.
    pub(super) async fn settle(self: &Arc<Self>, most: Duration) -> Hold {
        self.held.fetch_add(1, Ordering::SeqCst);
        let hold = Hold(Arc::clone(self));
        let taken = self.until(|| self.waiting() == 0, most);
        // While it takes some, but not all, each wait alone would begin again.
        _ = time::timeout(most, taken).await;
        hold
    }

    /// Waits for something that moves; `false`: nothing moved for so long.
    async fn until(&self, happened: impl Fn() -> bool, most: Duration) -> bool {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // From here on no move is missed.
            moved.as_mut().enable();
            if happened() {
                return true;
            }
            if time::timeout(most, moved).await.is_err() {
                return false;
            }
        }
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) > 0
    }

    /// Bytes at least.
    fn waiting(&self) -> u64 {
        let taken = self.taken.load(Ordering::SeqCst);
        // More was taken than given, that is by what the library adds: nothing waits.
        let given = self.given.fetch_max(taken, Ordering::SeqCst).max(taken);
        given - taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_waits_is_bounded_and_who_takes_nothing_is_found_out() {
        let flow = Flow::default();
        for _ in 0..3 {
            assert!(flow.room(SLOW).await);
            flow.give(100_000);
        }
        let (there, ()) = tokio::join!(flow.room(SLOW), async {
            for _ in 0..4 {
                assert!(flow.waiting() >= WINDOW);
                flow.take(10_000);
                tokio::task::yield_now().await;
            }
        });
        assert!(there);
        flow.give(200_000);
        assert!(!flow.room(Duration::from_millis(1)).await);
    }

    #[tokio::test]
    async fn what_the_library_adds_makes_no_room_for_later() {
        let flow = Flow::default();
        flow.take(1_000_000);
        assert!(flow.room(SLOW).await);
        flow.give(300_000);
        assert_eq!(flow.waiting(), 300_000);
    }

    #[tokio::test]
    async fn nothing_more_is_given_until_what_waits_is_taken_and_the_transport_is_another() {
        let flow = Arc::new(Flow::default());
        flow.give(1_000);
        let taking = async {
            tokio::task::yield_now().await;
            assert!(flow.is_held());
            flow.take(1_100);
        };
        let (hold, ()) = tokio::join!(flow.settle(SLOW), taking);
        assert!(!flow.room(Duration::from_millis(1)).await);
        let letting_go = async { drop(hold) };
        let (there, ()) = tokio::join!(flow.room(SLOW), letting_go);
        assert!(there);
    }

    #[tokio::test]
    async fn who_does_not_poll_gets_its_websocket_all_the_same() {
        let flow = Arc::new(Flow::default());
        flow.give(1_000);
        let hold = flow.settle(Duration::from_millis(1)).await;
        assert_eq!(flow.waiting(), 1_000);
        drop(hold);
        assert!(flow.room(SLOW).await);
    }
}
