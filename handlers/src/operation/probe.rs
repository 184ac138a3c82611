//! `--probe`: a health check for images that have nothing else to ask with.
//! In: the worker's address and the name of a page. Out: its answer, and whether it was 200.

use clap::ValueEnum;
use forebay_handlers::manifest::Listen;
use forebay_producer::program;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// Whether the process still turns.
    Livez,
    /// Whether every queue is consumed.
    Readyz,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
        }
    }

    /// Asks the worker that listens there; its answer if that is 200.
    ///
    /// # Errors
    /// Any other answer, or why there is none.
    pub(crate) fn ask(self, listen: &Listen) -> Result<String, String> {
        let Some(address) = listen.asked_at() else {
            return Err(format!(
                "a worker that listens at `{listen}` cannot be asked; give it a fixed address \
                 with --listen, FOREBAY_LISTEN or `listen` in [worker]"
            ));
        };
        let answer = program::page(&address, self.path())
            .map_err(|error| format!("no worker answers at {address}: {error}"))?;
        match answer {
            Some((200, body)) => Ok(body),
            Some((_, body)) => Err(body),
            None => Err(format!("what answers at {address} is no worker: it speaks no HTTP")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_a_fixed_address_cannot_be_asked() {
        for listen in ["off", "127.0.0.1:0"] {
            let refused = Probe::Livez.ask(&listen.parse().unwrap()).unwrap_err();
            assert!(refused.contains(listen) && refused.contains("--listen"), "{refused}");
        }
    }
}
