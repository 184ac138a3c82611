//! The runtime thread on which all AMQP input and output lives.
//! In: nothing. Out: a handle to it. A handler that hogs every thread of the user's runtime can
//! then cost neither the heartbeat nor a confirm.

use std::sync::OnceLock;
use std::{future, thread};

use tokio::runtime::{Builder, Handle};

/// The one AMQP runtime of this process, started at first use and kept until the process ends.
pub fn handle() -> &'static Handle {
    static HANDLE: OnceLock<Handle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("the operating system grants an epoll instance and a pipe");
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("forebay amqp".to_owned())
            .spawn(move || {
                ready_to_let_go();
                runtime.block_on(future::pending::<()>());
            })
            .expect("the operating system grants a thread");
        handle
    })
}

/// lapin's own threads drop their sockets with the help of a runtime that async-compat makes when
/// the first of them does. Made while no file descriptor is left, it could never be made again, and
/// each connection that ends later would end in a panic: so it is made now, outside of any other.
fn ready_to_let_go() {
    drop(async_compat::Compat::new(()));
}
