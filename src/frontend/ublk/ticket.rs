//! The completion that a backend gets with a request: it comes back, whatever the backend does with it.

use std::cell::Cell;
use std::sync::Arc;

use super::mailbox::{Mailbox, Message, RequestId};
use crate::frontend::{Backend, Completion, ReadError, Readiness, Segments};

thread_local! {
    /// While this thread is inside `Backend::ensure`: whether the completion was dropped there.
    static INSIDE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Calls `ensure` with a completion that always comes back: a backend that loses it (a scheduler that died, say) fails
/// the request instead of leaving its reader hanging. The second value tells that the completion was dropped during the
/// call, which is the rule for `Ready`.
pub(super) fn ensure(
    backend: &dyn Backend,
    segments: &Segments,
    mailbox: &Arc<Mailbox>,
    id: RequestId,
) -> (Readiness, bool) {
    struct Ticket {
        mailbox: Arc<Mailbox>,
        id: RequestId,
        used: bool,
    }
    impl Drop for Ticket {
        fn drop(&mut self) {
            if self.used {
                return;
            }
            if INSIDE.get().is_some() {
                INSIDE.set(Some(true));
            } else {
                self.mailbox.send(Message::Ensured(self.id, Err(ReadError::Unavailable)));
            }
        }
    }
    let mut ticket = Ticket { mailbox: Arc::clone(mailbox), id, used: false };
    let done: Completion = Box::new(move |result| {
        ticket.used = true;
        ticket.mailbox.send(Message::Ensured(ticket.id, result));
    });
    INSIDE.set(Some(false));
    let readiness = backend.ensure(segments, done);
    let dropped = INSIDE.replace(None).unwrap_or(false);
    (readiness, dropped)
}
