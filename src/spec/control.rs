//! Where the control API begins: the API answers below these paths, the endpoint asks for an admin key there.

/// The first parts of the control API's paths. `/healthz` is not among them: anybody may ask it.
pub const ROOTS: [&str; 11] = [
    "/v1/slots",
    "/v1/ensure",
    "/v1/fit",
    "/v1/rules",
    "/v1/signals",
    "/v1/events",
    "/v1/requests",
    "/v1/pulls",
    "/v1/plan",
    "/v1/inventory",
    "/v1/daemon",
];

/// Tells whether a path is one of the control API's.
pub fn is_control(path: &str) -> bool {
    ROOTS.iter().any(|root| is_below(root, path))
}

/// Tells whether a path is `root` or below it.
pub fn is_below(root: &str, path: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
