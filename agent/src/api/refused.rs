//! What a closed door is called on the wire, the same for all who ask there.

use podling_proto::error::{Reason, WireError};

use crate::intent::Refused;

impl From<Refused> for WireError {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Preparing => Reason::Preparing,
            Refused::Maintenance => Reason::Maintenance,
        };
        Self::new(reason, refused.to_string())
    }
}
