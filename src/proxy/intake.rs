//! The request as its path says it comes: a JSON object, a form, or a query alone.

use bytes::Bytes;
use hyper::{Method, Uri, body::Incoming, http::request::Parts};

use super::{
    body::{self, Asked},
    reply::Fault,
    surface::Intake,
    target::decoded,
};

/// Reads a request, and the model that it names.
pub(super) async fn read(
    head: &Parts,
    body: Incoming,
    intake: Intake,
    limit: usize,
) -> Result<Asked, Fault> {
    match intake {
        Intake::QueryOrJson if head.method == Method::POST => {
            let bytes = body::collect(&head.headers, body, limit).await?;
            let model = queried_model(&head.uri).or_else(|| body::named_model(&bytes));
            Ok(Asked::unread(bytes, model))
        }
        Intake::Query | Intake::QueryOrJson => {
            Ok(Asked::unread(Bytes::new(), queried_model(&head.uri)))
        }
        Intake::Form | Intake::Json => {
            let mut asked = body::read(&head.headers, body, limit).await?;
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
}
