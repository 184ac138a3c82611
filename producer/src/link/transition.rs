//! The supervision state machine, pure: for connections and for consumers alike.
//! In: what happened. Out: what to do next. A link that ends while nobody asked it to is a lost
//! link, and lost links are restored for as long as the process lives.
//!
//! ```text
//!            Begin/open                Opened
//!   Down ───────────────▶ Opening ───────────────▶ Up ◀──▶ Blocked
//!    ▲                       │                      │         │
//!    └──── wait, then open ──┴──── Lost(fault) ─────┴─────────┘
//!          (a missing queue: declare, then open)
//!   Begin while Up: it was paused, and is opened anew
//!   Stop from anywhere ▶ Stopped        denied before the first Opened, patience over ▶ Failed
//! ```
//! An event that does not fit its phase changes nothing; the action that is due stays due.

use std::time::Duration;

use super::fault::Fault;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT_DENIED: Duration = Duration::from_secs(30);

/// Where a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Not open; so many tries in a row did not help.
    Down {
        /// Tries since it was last up.
        failures: u32,
    },
    /// Being opened.
    Opening {
        /// Tries since it was last up.
        failures: u32,
    },
    /// Working.
    Up,
    /// Connected, but the broker reads nothing from us: memory or disk alarm.
    Blocked {
        /// The broker's words.
        because: String,
    },
    /// Given up; only before it was ever up.
    Failed,
    /// Ended by us.
    Stopped,
}

/// A link with what it remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub phase: Phase,
    /// Raised each time it is opened: what belongs to an earlier generation is not believed.
    pub generation: u64,
    /// How long refused credentials are tried again before the first success.
    pub patience: Duration,
    /// Declaring was tried since the last open that found nothing.
    declared: bool,
    /// When the present row of refusals began, by the supervisor's clock.
    denied_since: Option<Duration>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The supervisor begins, or has waited as told.
    Begin,
    /// It is open.
    Opened,
    /// Opening did not work, or it was lost; with the time since the supervisor began.
    Lost(Fault, Duration),
    /// The broker blocks us.
    Blocked(String),
    /// The broker reads again.
    Unblocked,
    /// We were told to stop.
    Stop,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Open it now.
    Open,
    /// Declare what is missing, then open.
    Declare,
    /// Wait so long, then send [`Event::Begin`].
    Wait(Duration),
    /// Nothing: watch it.
    Watch,
    /// Tell everybody that it cannot be had.
    GiveUp(Fault),
    /// Close it.
    Close,
}

impl State {
    /// A link that was never up.
    pub fn new(patience: Duration) -> Self {
        Self {
            phase: Phase::Down { failures: 0 },
            generation: 0,
            patience,
            declared: false,
            denied_since: None,
        }
    }

    /// Whether it was ever up.
    pub fn was_up(&self) -> bool {
        self.generation > 0
    }

    /// Decides. `jitter` is a number in 0..1 that spreads the waits of many workers.
    #[must_use]
    pub fn next(mut self, event: Event, jitter: f64) -> (Self, Action) {
        let failures = match self.phase {
            Phase::Stopped | Phase::Failed => return (self, Action::Close),
            Phase::Down { failures } | Phase::Opening { failures } => failures,
            Phase::Up | Phase::Blocked { .. } => 0,
        };
        let action = match (event, &self.phase) {
            (Event::Stop, _) => {
                self.phase = Phase::Stopped;
                Action::Close
            }
            (Event::Lost(fault, elapsed), _) => return self.lost(fault, failures, elapsed, jitter),
            (Event::Begin, _) => {
                self.phase = Phase::Opening { failures };
                Action::Open
            }
            (Event::Opened, Phase::Opening { .. }) => {
                self.phase = Phase::Up;
                self.generation += 1;
                self.declared = false;
                Action::Watch
            }
            (Event::Blocked(because), Phase::Up | Phase::Blocked { .. }) => {
                self.phase = Phase::Blocked { because };
                Action::Watch
            }
            (Event::Unblocked, Phase::Up | Phase::Blocked { .. }) => {
                self.phase = Phase::Up;
                Action::Watch
            }
            (Event::Opened | Event::Blocked(_) | Event::Unblocked, _) => self.due(),
        };
        (self, action)
    }

    /// What leads on from a phase in which nothing has happened.
    fn due(&self) -> Action {
        match self.phase {
            Phase::Down { .. } => Action::Wait(FIRST_WAIT),
            Phase::Opening { .. } => Action::Open,
            Phase::Up | Phase::Blocked { .. } => Action::Watch,
            Phase::Failed | Phase::Stopped => Action::Close,
        }
    }

    fn lost(
        mut self,
        fault: Fault,
        failures: u32,
        elapsed: Duration,
        jitter: f64,
    ) -> (Self, Action) {
        let hopeless = matches!(fault, Fault::Setup(_));
        let denied =
            hopeless || matches!(fault, Fault::Denied(_) | Fault::Vhost(_) | Fault::Mismatch(_));
        // A broker that was merely away has not refused us for all that time.
        self.denied_since = denied.then(|| self.denied_since.unwrap_or(elapsed));
        let refused_for = elapsed.saturating_sub(self.denied_since.unwrap_or(elapsed));
        // A user may come to be a moment later, a certificate does not get another issuer. Whoever
        // waits for ever was let in before: files are being renewed.
        let patience = match self.patience {
            Duration::MAX => Duration::MAX,
            _ if hopeless => Duration::ZERO,
            patience => patience,
        };
        if denied && !self.was_up() && refused_for >= patience {
            self.phase = Phase::Failed;
            return (self, Action::GiveUp(fault));
        }
        self.phase = Phase::Down { failures: failures.saturating_add(1) };
        // A 404 is an invitation to declare; one right after declaring is a fault to wait out.
        self.declared = matches!(fault, Fault::Missing(_)) && !self.declared;
        if self.declared {
            return (self, Action::Declare);
        }
        // Each of these tries is an error in the broker's log.
        let often = !denied && !matches!(fault, Fault::Locked(_));
        let most = if often { LONGEST_WAIT } else { LONGEST_WAIT_DENIED };
        let mut wait = backoff(failures, most, jitter);
        if denied && !self.was_up() {
            // The last try falls on the end of the patience, not long after it.
            wait = wait.min(patience - refused_for);
        }
        (self, Action::Wait(wait))
    }
}

/// Doubles from 0.1 s up to `most`; half of it is fixed, half is jitter.
fn backoff(failures: u32, most: Duration, jitter: f64) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(most);
    whole / 2 + (whole / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn up() -> State {
        let (state, _) = State::new(PATIENCE).next(Event::Begin, 1.0);
        state.next(Event::Opened, 1.0).0
    }

    fn lost(fault: Fault) -> Event {
        Event::Lost(fault, Duration::ZERO)
    }

    fn gone() -> Fault {
        Fault::Connection("reset".into())
    }

    #[test]
    fn the_usual_life() {
        let (state, action) = State::new(PATIENCE).next(Event::Begin, 1.0);
        assert_eq!((&state.phase, action), (&Phase::Opening { failures: 0 }, Action::Open));
        let (state, action) = state.next(Event::Opened, 1.0);
        assert_eq!((&state.phase, state.generation, action), (&Phase::Up, 1, Action::Watch));
        let (state, action) = state.next(lost(gone()), 1.0);
        assert_eq!(action, Action::Wait(Duration::from_millis(100)));
        let (state, _) = state.next(Event::Begin, 1.0);
        let (state, _) = state.next(Event::Opened, 1.0);
        assert_eq!((&state.phase, state.generation), (&Phase::Up, 2));
        assert_eq!(state.next(Event::Stop, 1.0).1, Action::Close);
    }

    #[test]
    fn waits_grow_to_a_second_or_to_thirty_when_denied() {
        for (fault, most) in
            [(gone(), LONGEST_WAIT), (Fault::Denied("no".into()), LONGEST_WAIT_DENIED)]
        {
            let mut state = up();
            let mut waits = Vec::new();
            for _ in 0..20 {
                let (next, action) = state.next(lost(fault.clone()), 1.0);
                let Action::Wait(wait) = action else { panic!("{action:?}") };
                waits.push(wait);
                state = next.next(Event::Begin, 1.0).0;
            }
            assert!(waits.is_sorted());
            assert_eq!((waits[0], waits[19]), (FIRST_WAIT, most));
        }
    }

    #[test]
    fn refused_credentials_end_it_only_at_the_first_connect_and_after_the_patience() {
        let denied = |after| Event::Lost(Fault::Denied("no".into()), after);
        // Away for an hour, then refusing: the patience begins with the first refusal.
        let hour = Duration::from_secs(3600);
        let away = State::new(PATIENCE).next(Event::Lost(gone(), hour), 1.0).0;
        let (state, action) = away.next(denied(hour), 1.0);
        assert!(matches!(action, Action::Wait(_)));
        let (state, action) = state.next(denied(hour + PATIENCE / 2), 1.0);
        assert!(matches!(action, Action::Wait(_)));
        let (state, action) = state.next(denied(hour + PATIENCE), 1.0);
        assert_eq!(action, Action::GiveUp(Fault::Denied("no".into())));
        assert_eq!(state.phase, Phase::Failed);
        assert!(matches!(up().next(denied(PATIENCE * 100), 1.0).1, Action::Wait(_)));
    }

    #[test]
    fn what_waiting_does_not_mend_ends_it_at_once_unless_it_was_ever_up() {
        let hopeless = || lost(Fault::Setup("expired".into()));
        let (state, action) = State::new(PATIENCE).next(hopeless(), 1.0);
        assert_eq!(
            (state.phase, action),
            (Phase::Failed, Action::GiveUp(Fault::Setup("expired".into())))
        );
        assert!(matches!(up().next(hopeless(), 1.0).1, Action::Wait(_)));
        // A worker's publisher, whose consumer was let in.
        assert!(matches!(State::new(Duration::MAX).next(hopeless(), 1.0).1, Action::Wait(_)));
    }

    #[test]
    fn an_unreachable_broker_is_waited_for_however_long_it_takes() {
        let event = Event::Lost(gone(), Duration::from_secs(86_400));
        assert!(matches!(State::new(PATIENCE).next(event, 1.0).1, Action::Wait(_)));
    }

    #[test]
    fn a_missing_queue_is_declared_and_waited_for_in_turns() {
        let missing = || lost(Fault::Missing("no queue".into()));
        // Deleted under its consumer: first the cancel, then the 404.
        let (state, action) = up().next(lost(Fault::Cancelled), 1.0);
        assert!(matches!(action, Action::Wait(_)));
        let mut state = state;
        for _ in 0..3 {
            let (next, action) = state.next(Event::Begin, 1.0).0.next(missing(), 1.0);
            assert_eq!(action, Action::Declare);
            let (next, action) = next.next(Event::Begin, 1.0).0.next(missing(), 1.0);
            assert!(matches!(action, Action::Wait(_)));
            state = next;
        }
    }

    #[test]
    fn blocked_and_back() {
        let (state, _) = up().next(Event::Blocked("low on memory".into()), 1.0);
        assert_eq!(state.phase, Phase::Blocked { because: "low on memory".into() });
        assert_eq!(state.next(Event::Unblocked, 1.0).0.phase, Phase::Up);
    }

    /// One state of each phase, with three failures where they are counted.
    fn phases() -> [State; 6] {
        let with = |phase| State { phase, generation: 7, ..State::new(PATIENCE) };
        let because = "low on memory".to_owned();
        [
            with(Phase::Down { failures: 3 }),
            with(Phase::Opening { failures: 3 }),
            with(Phase::Up),
            with(Phase::Blocked { because }),
            with(Phase::Failed),
            with(Phase::Stopped),
        ]
    }

    /// Every phase with every event: the phase after it, and the action.
    #[test]
    fn the_whole_table() {
        use Action::{Close, Declare, Open, Watch};
        let wait = |ms| Action::Wait(Duration::from_millis(ms));
        let down = |failures| Phase::Down { failures };
        let opening = |failures| Phase::Opening { failures };
        let blocked = |text: &str| Phase::Blocked { because: text.to_owned() };
        let denied = || lost(Fault::Denied("no".into()));
        let missing = || lost(Fault::Missing("no queue".into()));
        #[rustfmt::skip]
        let table: [(Event, [(Phase, Action); 4]); 8] = [
            // event             in Down               in Opening            in Up                in Blocked
            (Event::Begin,      [(opening(3), Open),   (opening(3), Open),   (opening(0), Open),  (opening(0), Open)]),
            (Event::Opened,     [(down(3), wait(100)), (Phase::Up, Watch),   (Phase::Up, Watch),  (blocked("low on memory"), Watch)]),
            (lost(gone()),      [(down(4), wait(800)), (down(4), wait(800)), (down(1), wait(100)), (down(1), wait(100))]),
            (denied(),          [(down(4), wait(800)), (down(4), wait(800)), (down(1), wait(100)), (down(1), wait(100))]),
            (missing(),         [(down(4), Declare),   (down(4), Declare),   (down(1), Declare),  (down(1), Declare)]),
            (Event::Blocked("full".into()),
                                [(down(3), wait(100)), (opening(3), Open),   (blocked("full"), Watch), (blocked("full"), Watch)]),
            (Event::Unblocked,  [(down(3), wait(100)), (opening(3), Open),   (Phase::Up, Watch),  (Phase::Up, Watch)]),
            (Event::Stop,       [(Phase::Stopped, Close), (Phase::Stopped, Close), (Phase::Stopped, Close), (Phase::Stopped, Close)]),
        ];
        for (event, row) in table {
            let ends = [(Phase::Failed, Close), (Phase::Stopped, Close)];
            for (state, expected) in phases().into_iter().zip(row.into_iter().chain(ends)) {
                let from = state.phase.clone();
                let opens = (&event, &from) == (&Event::Opened, &opening(3));
                let (next, action) = state.next(event.clone(), 1.0);
                assert_eq!((next.phase, action), expected, "{event:?} in {from:?}");
                assert_eq!(next.generation, if opens { 8 } else { 7 }, "{event:?} in {from:?}");
            }
        }
    }

    #[test]
    fn what_somebody_else_holds_is_waited_for_and_never_given_up() {
        let locked = Event::Lost(Fault::Locked("in exclusive use".into()), PATIENCE * 100);
        let mut state = State::new(PATIENCE);
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let (next, action) = state.next(locked.clone(), 1.0);
            let Action::Wait(wait) = action else { panic!("{action:?}") };
            longest = longest.max(wait);
            state = next.next(Event::Begin, 1.0).0;
        }
        assert_eq!(longest, LONGEST_WAIT_DENIED);
    }

    fn faults() -> impl Strategy<Value = Fault> {
        proptest::sample::select(vec![
            Fault::Missing("m".into()),
            Fault::Mismatch("m".into()),
            Fault::Overdue("o".into()),
            Fault::Locked("l".into()),
            Fault::Denied("d".into()),
            Fault::Vhost("v".into()),
            Fault::Channel("c".into()),
            Fault::Closed("c".into()),
            Fault::Connection("c".into()),
            Fault::Silent("5s".into()),
            Fault::Cancelled,
            Fault::Absent,
        ])
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => Just(Event::Begin),
            3 => Just(Event::Opened),
            3 => (faults(), 0u64..100).prop_map(|(fault, s)| Event::Lost(fault, Duration::from_secs(s))),
            1 => Just(Event::Blocked("b".into())),
            1 => Just(Event::Unblocked),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, a link that was once up is never given up, and the
        /// only action after a loss is one that leads back to opening it.
        #[test]
        fn a_link_that_was_up_is_always_restored(faults in proptest::collection::vec(faults(), 1..50)) {
            let mut state = up();
            for fault in faults {
                let (next, action) = state.next(Event::Lost(fault, Duration::from_secs(3600)), 0.5);
                prop_assert!(matches!(action, Action::Declare | Action::Wait(_)), "{:?}", action);
                let (next, action) = next.next(Event::Begin, 0.5);
                prop_assert_eq!(action, Action::Open);
                state = next;
            }
            let generation = state.generation;
            prop_assert_eq!(state.next(Event::Opened, 0.5).0.generation, generation + 1);
        }

        /// A generation is never told twice: it grows by one at each opening, and by nothing else.
        #[test]
        fn the_generation_only_grows(events in proptest::collection::vec(any_event(), 0..80)) {
            let mut state = State::new(PATIENCE);
            for event in events {
                let opens = event == Event::Opened && matches!(state.phase, Phase::Opening { .. });
                let before = state.generation;
                state = state.next(event, 0.5).0;
                prop_assert_eq!(state.generation, before + u64::from(opens));
            }
        }

        #[test]
        fn stop_is_final(
            before in proptest::collection::vec(any_event(), 0..40),
            after in proptest::collection::vec(any_event(), 0..40),
        ) {
            let mut state = State::new(PATIENCE);
            for event in before {
                state = state.next(event, 0.5).0;
            }
            let ended = state.phase == Phase::Failed;
            let (mut state, action) = state.next(Event::Stop, 0.5);
            prop_assert_eq!(action, Action::Close);
            let (phase, generation) = (state.phase.clone(), state.generation);
            prop_assert_eq!(&phase, if ended { &Phase::Failed } else { &Phase::Stopped });
            for event in after {
                let (next, action) = state.next(event, 0.5);
                prop_assert_eq!((&next.phase, next.generation), (&phase, generation));
                prop_assert_eq!(action, Action::Close);
                state = next;
            }
        }

        /// No wait is longer than a second, or than thirty where the broker refuses us or somebody
        /// else is in the way; and before the first opening none is longer than the patience.
        #[test]
        fn waits_are_bounded(
            events in proptest::collection::vec(any_event(), 0..80),
            jitter in 0.0f64..=1.0,
        ) {
            let mut state = State::new(PATIENCE);
            for event in events {
                let (next, action) = state.next(event.clone(), jitter);
                let fault = if let Event::Lost(fault, _) = event { Some(fault) } else { None };
                let refused = matches!(
                    fault,
                    Some(Fault::Denied(_) | Fault::Vhost(_) | Fault::Mismatch(_))
                );
                let locked = matches!(fault, Some(Fault::Locked(_)));
                if let Action::Wait(wait) = action {
                    let most = match (refused, locked) {
                        (true, _) if !next.was_up() => PATIENCE,
                        (true, _) | (_, true) => LONGEST_WAIT_DENIED,
                        _ => LONGEST_WAIT,
                    };
                    prop_assert!(wait <= most, "{:?} after {:?}", wait, fault);
                }
                state = next;
            }
        }

        /// However often it was blocked and unblocked, a loss is a loss: the phase after it is
        /// `Down` and the action leads on. And no block looks like an opening.
        #[test]
        fn blocked_never_keeps_a_loss_from_being_seen(
            blocks in proptest::collection::vec(any::<bool>(), 0..20),
            fault in faults(),
        ) {
            let mut state = up();
            for block in blocks {
                let event = if block { Event::Blocked("b".into()) } else { Event::Unblocked };
                let (next, action) = state.next(event, 0.5);
                prop_assert_eq!(action, Action::Watch);
                state = next;
            }
            let generation = state.generation;
            let (state, action) = state.next(lost(fault), 0.5);
            prop_assert_eq!(state.phase, Phase::Down { failures: 1 });
            prop_assert!(matches!(action, Action::Declare | Action::Wait(_)), "{:?}", action);
            prop_assert_eq!(state.generation, generation);
        }
    }
}
