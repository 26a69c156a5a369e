//! The bytes of an answer, gone on with by another host where one breaks off.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use super::known::name_of;
use super::{Inner, Opened};
use crate::registry::RegistryError;
use crate::registry::hosts::Endpoint;
use crate::registry::http::shown;
use crate::units::{BlobOffset, BlobRange, Offset as _};

/// A body on its way.
struct Running {
    blob: Arc<Inner>,
    host: Arc<Endpoint>,
    opened: Opened,
    /// Blob position of the next byte.
    at: BlobOffset,
    /// Hosts that had their chance.
    asked: Vec<String>,
}

/// The body, exactly as long as it was said to be or an error at its end. When a host breaks it off, another goes on.
pub(super) fn body(
    blob: Arc<Inner>,
    host: Arc<Endpoint>,
    opened: Opened,
) -> stream::BoxStream<'static, Result<bytes::Bytes, RegistryError>> {
    let (at, asked) = (opened.sent.start(), vec![name_of(&host)]);
    let state = Some(Running { blob, host, opened, at, asked });
    stream::unfold(state, move |state| async move {
        let mut running = state?;
        loop {
            let error = match running.next().await {
                Ok(None) => return None,
                Ok(Some(piece)) => return Some((Ok(piece), Some(running))),
                Err(error) => error,
            };
            let Some(rest) = BlobRange::new(running.at, running.opened.sent.end()).filter(|rest| !rest.is_empty())
            else {
                return Some((Err(error), None));
            };
            match running.blob.go_on(&running.host, &running.asked, rest, error).await {
                Ok((host, opened)) => {
                    running.asked.push(name_of(&host));
                    (running.host, running.opened) = (host, opened);
                }
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
    .boxed()
}

impl Running {
    /// The next piece, or the end.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, RegistryError> {
        let Opened { url, response, sent } = &mut self.opened;
        let so_far = |at: BlobOffset| at.bytes_since(sent.start()).unwrap_or(0);
        match self.blob.client.http().chunk_within(self.host.idle_limit, url, response).await? {
            Some(piece) => {
                let got_bytes = so_far(self.at).saturating_add(piece.len() as u64);
                if got_bytes > sent.len_bytes() {
                    return Err(RegistryError::WrongSize {
                        url: shown(url),
                        expected_bytes: sent.len_bytes(),
                        actual_bytes: got_bytes,
                    });
                }
                self.at = BlobOffset::new(self.at.get() + piece.len() as u64);
                Ok(Some(piece))
            }
            None if self.at == sent.end() => Ok(None),
            None => Err(RegistryError::Truncated {
                url: shown(url),
                got_bytes: so_far(self.at),
                expected_bytes: sent.len_bytes(),
            }),
        }
    }
}
