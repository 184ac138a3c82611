//! `--probe`: a health check for images that have nothing else to ask with.
//! In: the address of the pages about the gateway, and the name of one. Out: its answer, and whether
//! it was 200.

use clap::ValueEnum;
use forebay_producer::program;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// Whether the process turns.
    Livez,
    /// Whether clients can be served.
    Readyz,
}

impl Probe {
    /// Asks the gateway that answers there; its answer if that is 200.
    pub(crate) fn ask(self, listen: &str) -> Result<String, String> {
        let Some(address) = program::asked_at(listen) else {
            return Err(format!(
                "a gateway that answers about itself at `{listen}` cannot be asked; give it a \
                 fixed address with --operation, FOREBAY_GATEWAY_OPERATION or `listen` in \
                 [operation]"
            ));
        };
        let path = match self {
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
        };
        let answer = program::page(&address, path)
            .map_err(|error| format!("no gateway answers at {address}: {error}"))?;
        match answer {
            Some((200, body)) => Ok(body),
            Some((_, body)) => Err(body),
            None => Err(format!("what answers at {address} is no gateway: it speaks no HTTP")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_a_fixed_address_cannot_be_asked() {
        for listen in ["off", "127.0.0.1:0"] {
            let refused = Probe::Livez.ask(listen).unwrap_err();
            assert!(refused.contains(listen) && refused.contains("--operation"), "{refused}");
        }
    }
}
