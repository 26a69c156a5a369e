//! What can be made to go wrong, and what is remembered of requests.

use std::time::Duration;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The range is ignored: 200 and the whole blob.
    IgnoreRange,
    /// Only this status, with `Retry-After` in seconds if given.
    Status {
        /// HTTP status.
        code: u16,
        /// Seconds for the header `Retry-After`.
        retry_after: Option<u64>,
    },
    /// The connection is closed after this many bytes of the request's body; nothing is answered or stored.
    DropUploadAfter(u64),
    /// This status with a body as registries send: an error code and a message.
    Refuse {
        /// HTTP status.
        code: u16,
        /// The registry's error code, e.g. `MANIFEST_INVALID`.
        error: &'static str,
    },
    /// The right head, then the connection is cut after this many bytes of the body.
    CutAfter(u64),
    /// 200 with an HTML page, as a captive portal does.
    Html,
    /// 206 with a `Content-Range` that begins this many bytes too late.
    ShiftedContentRange(u64),
    /// 206 with a `Content-Range` whose total is this number.
    ContentRangeTotal(u64),
    /// 206 without `Content-Range`.
    NoContentRange,
    /// The head claims this body length; the true body follows, then the connection closes.
    ContentLength(u64),
    /// The body comes chunked, without a length.
    Chunked,
    /// Chunked, with this many bytes of rubbish after the true body.
    ChunkedExtra(u64),
    /// The body comes in pieces of this many bytes with this pause between them.
    Drip {
        /// Bytes of a piece.
        bytes: usize,
        /// Pause between pieces.
        pause: Duration,
    },
    /// The request is read and never answered; the connection stays open until the registry is dropped.
    Stall,
    /// The head and this many bytes of the body, then silence; the connection stays open.
    StallAfter(u64),
    /// 307 to this URL.
    RedirectTo(String),
    /// 307 to the request's own path.
    RedirectLoop,
    /// Other bytes of the same length: every byte is inverted.
    ChangedBytes,
    /// The answer says `Content-Encoding: gzip`.
    ContentEncoding,
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without `?`; empty if none.
    pub query: String,
    /// The header `Range`, e.g. `bytes=0-99`.
    pub range: Option<String>,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// Whether it came to the second port, to which blobs are redirected.
    pub storage: bool,
    /// Number of the connection: equal numbers mean that a connection was kept alive.
    pub connection: u64,
}
