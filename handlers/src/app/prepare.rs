//! From a function of the manifest to a handler.
//! In: its settings, the environment, this machine. Out: what can be registered; or what is
//! missing, and what to do about it.

use std::collections::BTreeMap;
use std::path::Path;

use forebay_worker::{BatchOptions, HandlerOptions, WorkerBuilder};

use super::servers::Servers;
use crate::digest::FileDigest;
use crate::exec::{Exec, MissingProgram};
use crate::http::{Http, HttpError};
use crate::manifest::{Function, Runs};
use crate::serve::Server;
use crate::signature::Secret;

/// A function with everything it needs from this machine.
pub(super) enum Ready {
    Exec(Exec),
    Server(Server),
    Http(Http),
    FileDigest(FileDigest),
    #[cfg(feature = "email")]
    Email(crate::Email),
    #[cfg(feature = "image")]
    Thumbnail(crate::Thumbnail),
}

impl Ready {
    /// Batches are for functions of which the manifest can say so.
    pub(super) fn register<S: Send + Sync + 'static>(
        self,
        builder: WorkerBuilder<S>,
        kind: &str,
        options: HandlerOptions,
        batch: Option<BatchOptions>,
    ) -> WorkerBuilder<S> {
        if let Some(batch) = batch {
            match self {
                Self::Exec(exec) => {
                    return builder.handle_raw_batch(kind, options, batch, exec.batch_handler());
                }
                Self::Server(server) => {
                    return builder.handle_raw_batch(kind, options, batch, server.batch_handler());
                }
                Self::Http(http) => {
                    return builder.handle_raw_batch(kind, options, batch, http.batch_handler());
                }
                single => return single.register(builder, kind, options, None),
            }
        }
        match self {
            Self::Exec(exec) => builder.handle_raw(kind, options, exec.handler()),
            Self::Server(server) => builder.handle_raw(kind, options, server.handler()),
            Self::Http(http) => builder.handle_raw(kind, options, http.handler()),
            Self::FileDigest(digest) => builder.handle_raw(kind, options, digest.handler()),
            #[cfg(feature = "email")]
            Self::Email(email) => builder.handle_raw(kind, options, email.handler()),
            #[cfg(feature = "image")]
            Self::Thumbnail(thumbnail) => {
                builder.handle_raw_blocking(kind, options, thumbnail.handler())
            }
        }
    }
}

/// What is missing, and what to do about it.
pub(super) type Missing = (String, &'static str);

pub(super) fn prepare(
    kind: &str,
    function: &Function,
    servers: &Servers,
) -> Result<Option<Ready>, Missing> {
    let ready = match &function.runs {
        Runs::Exec { command, env, pass_env, cwd } => {
            let exec = program(command, env, pass_env, cwd);
            match exec.check() {
                Ok(()) => Ok(Ready::Exec(exec)),
                Err(missing) => Err((missing.to_string(), program_remedy(&missing))),
            }
        }
        Runs::Serve(_) | Runs::Server { .. } => {
            return Ok(servers.of(kind, function).map(Ready::Server));
        }
        Runs::Http { url, headers, secret_env } => {
            prepare_http(url, headers, secret_env.as_deref()).map(Ready::Http)
        }
        Runs::FileDigest { roots } => match FileDigest::new(roots) {
            Ok(digest) => Ok(Ready::FileDigest(digest)),
            Err(error) => Err((error.to_string(), "create the folder, or correct `roots`")),
        },
        #[cfg(feature = "email")]
        Runs::Email { options, login } => prepare_email(options, login.as_ref()).map(Ready::Email),
        #[cfg(feature = "image")]
        Runs::Thumbnail { options } => crate::Thumbnail::new(options)
            .map(Ready::Thumbnail)
            .map_err(|error| (error.to_string(), folder_remedy(&error))),
    };
    ready.map(Some)
}

#[cfg(feature = "email")]
fn prepare_email(
    options: &crate::EmailOptions,
    login: Option<&(String, String)>,
) -> Result<crate::Email, Missing> {
    let mut options = options.clone();
    if let Some((user, variable)) = login {
        let password = std::env::var(variable).ok().filter(|password| !password.is_empty());
        let missing = || format!("variable `{variable}` with the password is not set");
        let password = password.ok_or_else(|| (missing(), "set it to the password of `user`"))?;
        options = options.credentials(user, password);
    }
    crate::Email::new(&options).map_err(|error| {
        let remedy = match &error {
            crate::EmailError::Roots(error) => folder_remedy(error),
            crate::EmailError::Certificate { .. } => "correct `ca`, or the file",
            _ => "install the certificates of the system (ca-certificates), or name some with `ca`",
        };
        (error.to_string(), remedy)
    })
}

#[cfg(any(feature = "email", feature = "image"))]
fn folder_remedy(error: &crate::RootsError) -> &'static str {
    match error {
        crate::RootsError::Unwritable { .. } => "let the worker's user write to it",
        _ => "create the folder, or correct the path",
    }
}

pub(super) fn program_remedy(missing: &MissingProgram) -> &'static str {
    match missing {
        MissingProgram::File(_) => "correct its path, or make the file executable (chmod +x)",
        MissingProgram::NotOnPath { .. } => {
            "install it, give its path with a slash, or set PATH in `env`"
        }
        MissingProgram::Folder(_) => "create it, or correct `cwd`",
    }
}

fn prepare_http(
    url: &str,
    headers: &BTreeMap<String, String>,
    secret_env: Option<&str>,
) -> Result<Http, Missing> {
    let broken = |error: HttpError| (format!("it {error}"), "");
    let mut http = Http::new(url).map_err(broken)?;
    for (name, value) in headers {
        http = http.header(name, value).map_err(broken)?;
    }
    let Some(variable) = secret_env else {
        return Ok(http);
    };
    let remedy = "set it to the signing secret, as whsec_… in base64 or as any other text";
    let value = std::env::var(variable)
        .map_err(|_| (format!("variable `{variable}` with its secret is not set"), remedy))?;
    let secret = Secret::new(&value)
        .map_err(|error| (format!("variable `{variable}` cannot be used: {error}"), remedy))?;
    Ok(http.sign(secret))
}

pub(super) fn program(
    command: &[String],
    env: &BTreeMap<String, String>,
    pass_env: &[String],
    cwd: &Path,
) -> Exec {
    let (program, arguments) = command.split_first().expect("a read manifest names one");
    let exec = Exec::new(program).args(arguments).current_dir(cwd);
    let exec = pass_env.iter().fold(exec, Exec::pass_env);
    env.iter().fold(exec, |exec, (name, value)| exec.env(name, value))
}
