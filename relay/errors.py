"""Every failure that this service reports, as one tree.

RelayError
├── CallerError                 the caller can correct it
│   ├── BadRequest              400  a field, an id or a body is wrong
│   │   └── Unsupported         400  the upstream cannot do what a parameter asks for
│   ├── NoPreviousResponse      400  no whole response of the caller's to go on from
│   ├── Unauthorized            401  no key, or not a valid one
│   ├── Forbidden               403  not from here: another origin, a host that may not be named
│   ├── NotFound                404  no such route
│   │   ├── NoConversation      404  no such conversation, or not the caller's
│   │   ├── NoResponse          404  no such response, or not the caller's
│   │   ├── NoFile              404  no such file, or its conversation was deleted
│   │   └── ModelNotFound       404  no upstream has a model of that name
│   ├── MethodNotAllowed        405
│   ├── Busy                    409  the conversation is being asked something else
│   ├── KeyReused               409  the idempotency key was another ask's
│   ├── UpstreamGone            409  the conversation lives at an upstream that is no longer open
│   ├── LinkExpired             410  a download link that is too old
│   ├── TooLarge                413
│   ├── UnsupportedMediaType    415
│   ├── TooManyAttempts         429  wrong keys, sign-ins, or asks with tokens that no upstream accepted yet
│   └── CallerLeft              499  the caller has gone; for the log
├── ServiceError                we are to blame
│   ├── InternalError           500
│   ├── StoreFailed             503  the database cannot be used
│   └── Overloaded              503  no room for this request just now
└── UpstreamError               the model's side is to blame
    ├── UpstreamRefused         its own status, passed on where it means the same to the caller
    │   ├── TokenRejected       401  the access token is expired, invalid or its account deactivated
    │   ├── Challenged          403  it wants a browser to solve something; never done here
    │   ├── WrongCredentials    401  no account has this e-mail address and this password
    │   ├── AccountLocked       403  the account may not sign in
    │   ├── SecondFactor        403  the account asks for a second factor; not supported
    │   ├── Blocked             403  its moderation took the answer back
    │   ├── Refused             403  the model refused to answer
    │   └── RateLimited         429  with retry_after where a time was stated
    │       └── OneAtATime      429  the account is busy with another answer
    ├── UpstreamFailed          502  it answered what cannot be read
    │   ├── Unreachable         502  no connection, so nothing was asked
    │   │   └── NotRenewed      502  its refresh token got no access token just now, so nothing was asked
    │   ├── SignInChanged       502  the sign-in pages are not as they are known here
    │   └── UploadFailed        502  a file could not be uploaded, so nothing was asked
    ├── UpstreamCut             502  the answer ended before its end
    ├── OutcomeUnknown          502  an ask with a key was sent, and its outcome is not known
    ├── UpstreamTimeout         504  one of the clocks ran out
    └── StillAnswering          504  the caller's own time is over, and the answer to its key is being made

An error carries its policy: `status` for HTTP, a stable `code`, whose fault it is (`source`), `retry_after` in whole
seconds, whether the upstream may already have the question (`may_have_been_sent`), whether asking again cannot change
it (`is_final`), whether another account may help, and whether the account rests for `retry_after` (`rests_account`;
such a class makes an error of `retry_after` alone), whatever the model (`rests_whole_account`). Messages are for the
caller and hold no secret; `quoted` is the part that an upstream or a caller wrote, and `reason` the message without it,
for the log. An error is a value: nobody changes one after it was raised.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Source = Literal["caller", "service", "upstream"]


class RelayError(Exception):
    """A failure with a sentence for the caller that says what to do. `parameter`: the field at fault, if one is."""

    status: int = 500
    code: ClassVar[str] = "error"
    source: ClassVar[Source] = "service"
    may_have_been_sent: bool = True
    is_final: ClassVar[bool] = False
    another_account_may_help: ClassVar[bool] = False
    rests_account: ClassVar[bool] = False
    rests_whole_account: bool = False
    message: str = "Something went wrong."
    parameter: str | None = None

    def __init__(
        self, message: str = "", *, retry_after: int | None = None, quoted: str = ""
    ) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message
        self.retry_after = retry_after
        self.quoted = quoted

    @property
    def reason(self) -> str:
        """The message for the log: "..." stands where it quotes, or the class's own sentence where it is a quote."""
        if not self.quoted:
            return self.message
        reason = self.message.replace(self.quoted, "...")
        if reason in (self.message, "..."):
            return type(self).message
        return reason

    def drop_frames(self) -> None:
        """Forget where it was raised: the frames hold the request's body until the garbage collector comes."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


class CallerError(RelayError):
    status = 400
    code = "caller_error"
    source = "caller"
    may_have_been_sent = False


class BadRequest(CallerError):
    code = "bad_request"


class Unsupported(BadRequest):
    """A field asks for what cannot be done; it is never merely left out."""

    code = "unsupported_parameter"

    def __init__(self, message: str, *, parameter: str, quoted: str = "") -> None:
        super().__init__(message, quoted=quoted)
        self.parameter = parameter


class Unauthorized(CallerError):
    """`wrong_key`: something was shown that is no key, so it may be a guess."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str = "", *, wrong_key: bool = False) -> None:
        super().__init__(message)
        self.wrong_key = wrong_key


class Forbidden(CallerError):
    status = 403
    code = "forbidden"


class NotFound(CallerError):
    status = 404
    code = "not_found"
    message = "There is no such route; the README lists them all."


class NoConversation(NotFound):
    code = "no_conversation"
    message = "There is no such conversation. An ask without a conversation_id begins a new one."


class ModelNotFound(NotFound):
    code = "model_not_found"
    message = "There is no such model; GET /v1/models lists those that there are."
    parameter = "model"


class NoFile(NotFound):
    code = "no_file"
    message = (
        "There is no such file: the link is not one of this service, or its conversation "
        "was deleted."
    )


class NoResponse(NotFound):
    code = "response_not_found"
    message = (
        "There is no such response: it was not stored, was deleted, or is another "
        "owner's."
    )


class NoPreviousResponse(CallerError):
    code = "previous_response_not_found"
    message = (
        "There is no whole response with the id in previous_response_id: it was not "
        "stored, was deleted, or is another owner's. Send the dialogue in input."
    )
    parameter = "previous_response_id"


class MethodNotAllowed(CallerError):
    status = 405
    code = "method_not_allowed"
    message = "This route does not take that method."


class Busy(CallerError):
    status = 409
    code = "conversation_busy"
    message = "This conversation is still answering another question. Wait for that answer, then ask again."


class KeyReused(CallerError):
    status = 409
    code = "key_reused"
    message = "Under this idempotency key something else was asked. Take a new key for a new question."


class UpstreamGone(CallerError):
    status = 409
    code = "upstream_gone"


class LinkExpired(CallerError):
    status = 410
    code = "link_expired"
    message = (
        "This link has expired. Read the conversation again: there it has a new one."
    )


class TooLarge(CallerError):
    status = 413
    code = "too_large"


class UnsupportedMediaType(CallerError):
    status = 415
    code = "unsupported_media_type"


class TooManyAttempts(CallerError):
    status = 429
    code = "too_many_attempts"


class CallerLeft(CallerError):
    status = 499
    code = "caller_left"
    may_have_been_sent = True
    message = "The caller left before the answer was whole."


class ServiceError(RelayError):
    code = "service_error"


class InternalError(ServiceError):
    code = "internal_error"
    message = "The service failed; its log has the reason, under this request's id."


class StoreFailed(ServiceError):
    status = 503
    code = "store_failed"
    message = "The database cannot be used just now. Try again; if it stays, look at DATABASE_URL, or DATA_DIR's disk."


class Overloaded(ServiceError):
    status = 503
    code = "overloaded"
    may_have_been_sent = False
    message = "The service has no room for this request just now. Send it again soon."

    def __init__(self, message: str = "", *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class UpstreamError(RelayError):
    status = 502
    code = "upstream_error"
    source = "upstream"


UNAVAILABLE = (503, 529)  # a server that says so itself has begun nothing


class UpstreamRefused(UpstreamError):
    """The upstream answered with an error status of its own.

    `is_own`: in its API's own form; a proxy before it would not know whether the question was read.
    """

    code = "upstream_refused"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after: int | None = None,
        is_own: bool = False,
        quoted: str = "",
    ) -> None:
        super().__init__(message, retry_after=retry_after, quoted=quoted)
        self.status = status if 400 <= status <= 599 else 502
        # a server that failed, or took too long, may have read the question first
        self.may_have_been_sent = status >= 500 or status == 408
        if status in UNAVAILABLE and is_own:
            self.may_have_been_sent = False


class TokenRejected(UpstreamRefused):
    """`is_renewable`: an access token has expired, so a newer one of the same account may be accepted."""

    status = 401
    code = "token_rejected"
    another_account_may_help = True

    def __init__(
        self, message: str, *, quoted: str = "", is_renewable: bool = False
    ) -> None:
        super().__init__(message, status=401, quoted=quoted)
        self.is_renewable = is_renewable


class Challenged(UpstreamRefused):
    status = 403
    code = "challenged"
    another_account_may_help = True
    rests_account = True
    rests_whole_account = True
    message = (
        "The upstream demanded a browser check of this account, which this service "
        "never solves; it is not asked again until Retry-After is over."
    )

    def __init__(self, message: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(message, status=403, retry_after=retry_after)


class WrongCredentials(UpstreamRefused):
    status = 401
    code = "wrong_credentials"
    message = "The e-mail address or the password is wrong. Correct it before the next try: several lock an account."

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        super().__init__(message, status=401, quoted=quoted)


class AccountLocked(UpstreamRefused):
    status = 403
    code = "account_locked"
    message = (
        "ChatGPT does not let this account sign in: it is locked, blocked or deactivated. "
        "Sign in with a browser and follow what it says there."
    )

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        super().__init__(message, status=403, quoted=quoted)


class SecondFactor(UpstreamRefused):
    status = 403
    code = "second_factor"
    message = (
        "This account asks for a second factor, which is not supported here. Sign in with a browser, and send "
        "the access token that https://chatgpt.com/api/auth/session shows then."
    )

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        super().__init__(message, status=403, quoted=quoted)


class Blocked(UpstreamRefused):
    status = 403
    code = "blocked"
    is_final = True
    message = "The upstream's moderation took this answer back."

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        super().__init__(message, status=403, quoted=quoted)
        self.may_have_been_sent = True


class Refused(UpstreamRefused):
    status = 403
    code = "refused"
    is_final = True
    message = "The model refused to answer."

    def __init__(self, message: str, *, quoted: str = "") -> None:
        # the words of a refusal are the model's, whoever passes them on
        super().__init__(message, status=403, quoted=quoted or message)
        self.may_have_been_sent = True


class RateLimited(UpstreamRefused):
    """`whole_account`: the limit holds whatever the model."""

    status = 429
    code = "rate_limited"
    another_account_may_help = True
    rests_account = True
    message = "The upstream's limit is reached."

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: int | None = None,
        quoted: str = "",
        whole_account: bool = False,
    ) -> None:
        super().__init__(message, status=429, retry_after=retry_after, quoted=quoted)
        self.rests_whole_account = whole_account


class OneAtATime(RateLimited):
    code = "one_at_a_time"


class UpstreamFailed(UpstreamError):
    code = "upstream_failed"


class Unreachable(UpstreamFailed):
    code = "upstream_unreachable"
    may_have_been_sent = False
    another_account_may_help = True


class SignInChanged(UpstreamFailed):
    """`step`: which of the sign-in's requests was answered with something unknown."""

    code = "sign_in_changed"
    message = (
        "The sign-in pages are not as this service knows them. Send an access token, which "
        "https://chatgpt.com/api/auth/session shows, or a refresh token, or set AUTH_URL."
    )

    def __init__(self, message: str = "", *, step: str = "", quoted: str = "") -> None:
        sentence = message or self.message
        if step:
            sentence = f"{sentence} (At the step: {step}.)"
        super().__init__(sentence, quoted=quoted)


class NotRenewed(Unreachable):
    """`may_be_used_up`: the token server may have taken the refresh token, and its answer is not known."""

    code = "token_not_renewed"

    def __init__(
        self,
        message: str,
        *,
        retry_after: int | None = None,
        may_be_used_up: bool = False,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.may_be_used_up = may_be_used_up


class UploadFailed(UpstreamFailed):
    code = "upload_failed"
    may_have_been_sent = False


class UpstreamCut(UpstreamError):
    code = "upstream_cut"
    message = "The upstream ended in the middle of the answer."


class OutcomeUnknown(UpstreamError):
    code = "outcome_unknown"
    message = "This was sent to the upstream before, and what became of it is not known: it is not asked again."

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        # a recorded failure does not say which of its words were an upstream's
        super().__init__(message, quoted=quoted or message)


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class StillAnswering(UpstreamError):
    """The caller's own `timeout` is over; the ask goes on, and its key leads to the answer."""

    status = 504
    code = "still_answering"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The answer was not whole within {seconds:g} s, and is still being made. "
            "Send the same key again for it: nothing is asked twice.",
            retry_after=2,
        )
