//! The request as its path says it comes: a JSON object, a form, or a query alone.

use std::path::Path;

use bytes::Bytes;
use hyper::{Method, Uri, body::Incoming, header::CONTENT_TYPE, http::request::Parts};

use super::{
    body::{self, Asked},
    depth,
    reply::Fault,
    spool,
    surface::Intake,
    target::decoded,
};

/// Reads a request, and the model that it names.
pub(super) async fn read(
    head: &Parts,
    body: Incoming,
    intake: Intake,
    (limit, folder): (usize, &Path),
) -> Result<Asked, Fault> {
    match intake {
        Intake::QueryOrJson if head.method == Method::POST => {
            let bytes = body::collect(&head.headers, body, limit).await?;
            depth::check(&bytes)?;
            let model = queried_model(&head.uri).or_else(|| body::named_model(&bytes));
            Ok(Asked::unread(bytes, model))
        }
        Intake::Bare => {
            let bytes = body::collect(&head.headers, body, limit).await?;
            Ok(Asked::unread(bytes, queried_model(&head.uri)))
        }
        Intake::Query | Intake::QueryOrJson | Intake::Kept => {
            Ok(Asked::unread(Bytes::new(), queried_model(&head.uri)))
        }
        Intake::Form | Intake::Json => {
            let boundary = boundary(head).filter(|_| intake == Intake::Form);
            let mut asked = match boundary {
                Some(boundary) => spool::read(head, body, (&boundary, folder), limit).await?,
                None => body::read(&head.headers, body, limit).await?,
            };
            if asked.model.is_none() {
                asked.model = queried_model(&head.uri);
            }
            Ok(asked)
        }
    }
}

/// Returns `model` of a query.
fn queried_model(uri: &Uri) -> Option<String> {
    let pairs = uri.query()?.split('&');
    let model = pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == "model")?;
    Some(decoded(&model.1.replace('+', " "))).filter(|model| !model.is_empty())
}

/// Returns the boundary of a form, if the request has one.
fn boundary(head: &Parts) -> Option<String> {
    let kind = head.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (name, parameters) = kind.split_once(';')?;
    if !name.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut pairs = parameters.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, boundary) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?;
    Some(boundary.trim_matches('"').to_owned()).filter(|boundary| !boundary.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_model() {
        let model = |uri: &'static str| queried_model(&Uri::from_static(uri));
        assert_eq!(model("/props?a=b&model=org%2Fsmall%3AQ4"), Some("org/small:Q4".to_owned()));
        assert_eq!(model("/props?model="), None);
        assert_eq!(model("/props"), None);
    }

    #[test]
    fn the_boundary_of_a_form_is_read_as_clients_write_it() {
        let of = |kind: &str| {
            let request = hyper::Request::builder().header(CONTENT_TYPE, kind).body(()).unwrap();
            boundary(&request.into_parts().0)
        };
        assert_eq!(of("multipart/form-data; boundary=abc"), Some("abc".to_owned()));
        assert_eq!(of("Multipart/Form-Data; charset=x; Boundary=\"a b\""), Some("a b".to_owned()));
        assert_eq!(of("application/json"), None);
    }
}
