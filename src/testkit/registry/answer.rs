//! Answers on the wire, spoiled by a fault where one was scripted.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Fault, Request};

pub(super) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    ranged: bool,
}

impl Answer {
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Self { status, headers, body: body.into(), ranged: false }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), ranged: false }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Ranges of the body may be asked for.
    pub(super) fn ranged(mut self) -> Self {
        self.ranged = true;
        self
    }
}

/// How the body goes out.
enum Framing {
    Length(u64),
    Chunked,
}

/// Sends; `true` when the connection can take another request.
pub(super) async fn send(stream: &mut TcpStream, request: &Request, answer: Answer, fault: Option<Fault>) -> bool {
    let mut answer = answer;
    let (mut cut, mut drip, mut framing, mut stall) = (None, None, None, None);
    let mut shift = 0;
    let (mut total, mut ignore_range, mut no_content_range) = (None, false, false);
    match fault {
        None => {}
        Some(Fault::IgnoreRange) => ignore_range = true,
        Some(Fault::Status { code, retry_after }) => {
            answer = Answer::status(code);
            if let Some(seconds) = retry_after {
                answer = answer.header("Retry-After", &seconds.to_string());
            }
        }
        Some(Fault::Refuse { code, error }) => {
            let body = serde_json::json!({"errors": [{"code": error, "message": "refused by the test"}]}).to_string();
            answer = Answer::new(code, "application/json", body);
        }
        // Has ended the connection before there was an answer.
        Some(Fault::DropUploadAfter(_)) => return false,
        Some(Fault::CutAfter(bytes)) => cut = Some(bytes),
        Some(Fault::Html) => answer = Answer::new(200, "text/html; charset=utf-8", "<html>Please log in</html>"),
        Some(Fault::ShiftedContentRange(bytes)) => shift = bytes,
        Some(Fault::ContentRangeTotal(bytes)) => total = Some(bytes),
        Some(Fault::NoContentRange) => no_content_range = true,
        Some(Fault::ContentLength(bytes)) => framing = Some(Framing::Length(bytes)),
        Some(Fault::Chunked) => framing = Some(Framing::Chunked),
        Some(Fault::ChunkedExtra(bytes)) => {
            framing = Some(Framing::Chunked);
            let extra = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX)];
            answer.body = [answer.body.as_ref(), &extra].concat().into();
            ignore_range = true;
        }
        Some(Fault::Drip { bytes, pause }) => drip = Some((bytes.max(1), pause)),
        Some(Fault::Stall) => return std::future::pending().await,
        Some(Fault::StallAfter(bytes)) => stall = Some(bytes),
        Some(Fault::RedirectTo(url)) => answer = Answer::status(307).header("Location", &url),
        Some(Fault::RedirectLoop) => answer = Answer::status(307).header("Location", &request.path),
        Some(Fault::ChangedBytes) => answer.body = answer.body.iter().map(|b| !b).collect(),
        Some(Fault::ContentEncoding) => answer = answer.header("Content-Encoding", "gzip"),
    }
    let whole = answer.body.len() as u64;
    if answer.ranged && !ignore_range && answer.status == 200 {
        match request.range.as_deref().map(|range| parse_range(range, whole)) {
            None => {}
            Some(None) => answer = Answer::status(416),
            Some(Some((first, last))) => {
                answer.status = 206;
                answer.body =
                    answer.body.slice(usize::try_from(first).unwrap_or(0)..=usize::try_from(last).unwrap_or(0));
                if !no_content_range {
                    let total = total.unwrap_or(whole);
                    let value = format!("bytes {}-{}/{total}", first + shift, last + shift);
                    answer = answer.header("Content-Range", &value);
                }
            }
        }
    }
    if request.method == "HEAD" {
        let length = answer.body.len();
        return write_head(stream, &answer, &Framing::Length(length as u64)).await.is_ok();
    }
    let honest = matches!(framing, None | Some(Framing::Chunked));
    let framing = framing.unwrap_or(Framing::Length(answer.body.len() as u64));
    let sent = async {
        write_head(stream, &answer, &framing).await?;
        let limit = cut.or(stall).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
        let body = &answer.body[..answer.body.len().min(limit)];
        let (piece, pause) = drip.map_or((body.len().max(1), None), |(bytes, pause)| (bytes, Some(pause)));
        for bytes in body.chunks(piece) {
            if let Framing::Chunked = framing {
                stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
            }
            stream.write_all(bytes).await?;
            if let Framing::Chunked = framing {
                stream.write_all(b"\r\n").await?;
            }
            if let Some(pause) = pause {
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
        if stall.is_some() {
            stream.flush().await?;
            return std::future::pending().await;
        }
        if let (Framing::Chunked, None) = (&framing, cut) {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        stream.flush().await
    };
    sent.await.is_ok() && cut.is_none() && honest
}

async fn write_head(stream: &mut TcpStream, answer: &Answer, framing: &Framing) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Test\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match framing {
        Framing::Length(bytes) => head.push_str(&format!("Content-Length: {bytes}\r\n\r\n")),
        Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).await
}

/// `bytes=FIRST-[LAST]` within `whole` bytes, as first and last byte; `None` when no byte of it exists.
fn parse_range(range: &str, whole: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
    (first < whole && first <= last).then(|| (first, last.min(whole - 1)))
}
