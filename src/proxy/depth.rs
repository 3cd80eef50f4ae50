//! How deep a body nests: parsers behind slotd may go down one call a bracket, and not come back.

use memchr::memchr2_iter;

use super::reply::Fault;

/// The most brackets that may be open at once. What clients send, schemas too, has some tens.
const MOST: usize = 1000;

/// Refuses a body that nests too deep. One that has few brackets, as all have, is not looked into.
pub(super) fn check(body: &[u8]) -> Result<(), Fault> {
    if memchr2_iter(b'[', b'{', body).nth(MOST).is_none() || deepest(body) <= MOST {
        return Ok(());
    }
    let message = format!("the request body nests more than {MOST} brackets deep");
    Err(Fault::bad_request(None, "body_too_deep", message))
}

/// Returns how many brackets are open at once, as far as there are too many.
fn deepest(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut bytes) = (0_usize, 0, body.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => depth = depth.saturating_add(1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_text(&mut bytes),
            _ => continue,
        }
        deepest = deepest.max(depth);
        if deepest > MOST {
            break;
        }
    }
    deepest
}

fn skip_text(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            // Whatever is escaped ends nothing.
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
    }

    #[test]
    fn only_brackets_that_are_open_at_once_count() {
        assert!(check(nested(MOST).as_bytes()).is_ok());
        assert_eq!(check(nested(MOST + 1).as_bytes()).unwrap_err().status, 400);
        let wide = format!("[{}0]", "[],{},".repeat(MOST));
        assert!(check(wide.as_bytes()).is_ok());
        let text = format!("{{\"a\":\"\\\"{}\"}}", "[{".repeat(2 * MOST));
        assert!(check(text.as_bytes()).is_ok(), "brackets in a text are none");
        assert!(check(&b"[".repeat(1 << 20)).is_err());
    }
}
