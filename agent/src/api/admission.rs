//! Converts rejections of the admission gate to wire errors, the same for every service.

use podling_proto::error::{Reason, WireError};

use crate::admission::Rejection;

impl From<Rejection> for WireError {
    fn from(rejection: Rejection) -> Self {
        let reason = match rejection {
            Rejection::Preparing => Reason::Preparing,
            Rejection::Maintenance => Reason::Maintenance,
        };
        Self::new(reason, rejection.to_string())
    }
}
