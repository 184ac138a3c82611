//! Bookkeeping of delivery tags, pure: which acknowledgements go out, and when several go as one.
//! In: tags as their jobs are settled, in any order. Out: orders for the broker, in which no tag is
//! ever named twice: the broker answers that with 406 and takes the whole window back.

use std::collections::VecDeque;

/// How one delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Done: the broker may forget it.
    Ack,
    /// Not run: back to the queue.
    GiveBack,
    /// The broker's own dead-lettering takes it.
    Reject,
}

/// One frame to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Acknowledge this tag and all before it that are outstanding.
    AckUpTo(u64),
    /// Acknowledge this one.
    Ack(u64),
    /// Give this one back.
    GiveBack(u64),
    /// Dead-letter this one.
    Reject(u64),
}

/// The tags of one channel. The broker numbers the deliveries of a channel 1, 2, 3, … (AMQP 0-9-1,
/// section 1.1), and each channel has one consumer. What is kept here is bounded by the prefetch.
#[derive(Debug)]
pub(crate) struct Acker {
    /// The lowest tag that was never named here; all from it on are open.
    next: u64,
    /// Below `next`, delivered and not settled; in order.
    open: VecDeque<u64>,
    /// Done, and the broker does not know yet.
    done: Vec<u64>,
    patience: usize,
}

impl Acker {
    /// `prefetch` is how many may be outstanding; half of it may be held back.
    pub(crate) fn new(prefetch: u16) -> Self {
        let patience = usize::from(prefetch / 2).max(1);
        Self { next: 1, open: VecDeque::new(), done: Vec::new(), patience }
    }

    /// Notes one settled delivery. A tag that was settled before changes nothing.
    pub(crate) fn settle(&mut self, tag: u64, how: How, orders: &mut Vec<Order>) {
        if tag >= self.next {
            self.open.extend(self.next..tag);
            self.next = tag + 1;
        } else {
            let Ok(place) = self.open.binary_search(&tag) else { return };
            self.open.remove(place);
        }
        match how {
            How::Ack => self.done.push(tag),
            How::GiveBack => orders.push(Order::GiveBack(tag)),
            How::Reject => orders.push(Order::Reject(tag)),
        }
    }

    /// Acknowledges the finished prefix in one order; and, when a slow job has held back half the
    /// prefetch behind it, those one by one.
    pub(crate) fn flush(&mut self, orders: &mut Vec<Order>) {
        self.flush_prefix(orders);
        if self.held() >= self.patience {
            self.flush_held(orders);
        }
    }

    /// Acknowledges everything that is done, held back or not.
    pub(crate) fn flush_all(&mut self, orders: &mut Vec<Order>) {
        self.flush_prefix(orders);
        self.flush_held(orders);
    }

    /// How many are done that the broker does not know yet.
    pub(crate) fn held(&self) -> usize {
        self.done.len()
    }

    fn flush_prefix(&mut self, orders: &mut Vec<Order>) {
        let end = self.open.front().copied().unwrap_or(self.next);
        let (mut highest, held) = (0, self.done.len());
        self.done.retain(|tag| {
            let behind = *tag > end;
            if !behind {
                highest = highest.max(*tag);
            }
            behind
        });
        match held - self.done.len() {
            0 => {}
            1 => orders.push(Order::Ack(highest)),
            // Named is the highest *outstanding* one: a later tag may be gone already.
            _ => orders.push(Order::AckUpTo(highest)),
        }
    }

    fn flush_held(&mut self, orders: &mut Vec<Order>) {
        self.done.sort_unstable();
        orders.extend(self.done.drain(..).map(Order::Ack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn orders(acker: &mut Acker, settled: &[(u64, How)]) -> Vec<Order> {
        let mut orders = Vec::new();
        for (tag, how) in settled {
            acker.settle(*tag, *how, &mut orders);
        }
        acker.flush(&mut orders);
        orders
    }

    #[test]
    fn a_finished_prefix_goes_as_one() {
        let mut acker = Acker::new(100);
        let settled = [(2, How::Ack), (1, How::Ack), (3, How::Ack), (5, How::Ack)];
        assert_eq!(orders(&mut acker, &settled), [Order::AckUpTo(3)]);
        assert_eq!(orders(&mut acker, &[(4, How::Ack)]), [Order::AckUpTo(5)]);
    }

    #[test]
    fn a_slow_job_holds_back_no_more_than_half_the_prefetch() {
        let mut acker = Acker::new(8);
        let behind: Vec<_> = (2..=4).map(|tag| (tag, How::Ack)).collect();
        assert_eq!(orders(&mut acker, &behind), []);
        let singles = [Order::Ack(2), Order::Ack(3), Order::Ack(4), Order::Ack(5)];
        assert_eq!(orders(&mut acker, &[(5, How::Ack)]), singles);
        // The slow one is the only one left of the prefix: never `multiple` over settled tags.
        assert_eq!(orders(&mut acker, &[(1, How::Ack)]), [Order::Ack(1)]);
    }

    #[test]
    fn multiple_names_the_highest_outstanding_tag_of_the_prefix() {
        let mut acker = Acker::new(100);
        let settled = [(1, How::Ack), (2, How::Ack), (3, How::GiveBack)];
        assert_eq!(orders(&mut acker, &settled), [Order::GiveBack(3), Order::AckUpTo(2)]);
    }

    /// What the broker does with orders: it closes the channel over an unknown tag.
    struct Broker {
        outstanding: BTreeSet<u64>,
        acked: BTreeSet<u64>,
    }

    impl Broker {
        fn take(&mut self, order: Order) {
            match order {
                Order::AckUpTo(tag) => {
                    assert!(self.outstanding.contains(&tag), "406: unknown delivery tag {tag}");
                    let rest = self.outstanding.split_off(&(tag + 1));
                    self.acked.append(&mut self.outstanding);
                    self.outstanding = rest;
                }
                Order::Ack(tag) => {
                    assert!(self.outstanding.remove(&tag), "406: unknown delivery tag {tag}");
                    self.acked.insert(tag);
                }
                Order::GiveBack(tag) | Order::Reject(tag) => {
                    assert!(self.outstanding.remove(&tag), "406: unknown delivery tag {tag}");
                }
            }
        }
    }

    proptest! {
        /// In whatever order jobs end, no tag is named twice, exactly the acked ones are acked,
        /// and at the end the broker knows about every one.
        #[test]
        fn the_broker_never_objects_and_believes_exactly_what_happened(
            mut jobs in proptest::collection::vec((any::<u32>(), 0u8..10, any::<bool>()), 1..300),
            prefetch in 1u16..64,
        ) {
            let mut numbered: Vec<_> = jobs.drain(..).zip(1u64..).collect();
            numbered.sort(); // a random order of ending
            let mut broker = Broker {
                outstanding: (1..=numbered.len() as u64).collect(),
                acked: BTreeSet::new(),
            };
            let mut acker = Acker::new(prefetch);
            let mut expected = BTreeSet::new();
            for ((_, how, flush), tag) in &numbered {
                let how = match how { 0 => How::GiveBack, 1 => How::Reject, _ => How::Ack };
                if how == How::Ack {
                    expected.insert(*tag);
                }
                let mut orders = Vec::new();
                acker.settle(*tag, how, &mut orders);
                acker.settle(*tag, How::Ack, &mut orders); // a second word on it changes nothing
                if *flush {
                    acker.flush(&mut orders);
                    prop_assert!(acker.held() < acker.patience);
                }
                orders.into_iter().for_each(|order| broker.take(order));
            }
            let mut orders = Vec::new();
            acker.flush_all(&mut orders);
            orders.into_iter().for_each(|order| broker.take(order));
            prop_assert!(broker.outstanding.is_empty());
            prop_assert_eq!(broker.acked, expected);
            prop_assert_eq!(acker.held(), 0);
        }
    }
}
