//! Whether the next job of a bulk publish goes to the broker or to the spool, pure.
//! In: how publishes ended. Out: a way for each job. After a failure one job at a time tries the
//! broker, for as long as it takes: the others need not wait for their deadline to learn the same.

/// Where a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Broker,
    Spool,
}

/// Open at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Gate {
    shut: bool,
    /// The line of the job that tries whether the broker is there again.
    probe: Option<u64>,
}

impl Gate {
    /// The way of the job in this line.
    pub(crate) fn way(&mut self, line: u64) -> Way {
        if self.shut && self.probe.is_some() {
            return Way::Spool;
        }
        if self.shut {
            self.probe = Some(line);
        }
        Way::Broker
    }

    /// The broker has answered: it takes jobs.
    pub(crate) fn open(&mut self) {
        *self = Self::default();
    }

    /// The broker did not take the job in this line.
    pub(crate) fn shut(&mut self, line: u64) {
        self.shut = true;
        self.told_nothing(line);
    }

    /// The job in this line failed for a reason of its own.
    pub(crate) fn told_nothing(&mut self, line: u64) {
        self.probe.take_if(|probe| *probe == line);
    }

    pub(crate) fn is_shut(self) -> bool {
        self.shut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_job_at_a_time_tries_the_broker() {
        let mut gate = Gate::default();
        assert_eq!([1, 2, 3].map(|line| gate.way(line)), [Way::Broker; 3]);
        gate.shut(1);
        assert_eq!([4, 5].map(|line| gate.way(line)), [Way::Broker, Way::Spool]);
        // Those that were under way before are no probe.
        gate.shut(2);
        assert_eq!(gate.way(6), Way::Spool);
        gate.shut(4);
        assert_eq!([7, 8].map(|line| gate.way(line)), [Way::Broker, Way::Spool]);
        gate.open();
        assert_eq!([9, 10].map(|line| gate.way(line)), [Way::Broker; 2]);
    }
}
