/* The protocol by which a fleet moves a topic from one broker to another, for spin to explore to exhaustion.
 *
 * A transition stands for one thing that a client, a broker or the operator does at once, and the comment of
 * each names the C++ function that it stands for (Topic and guards: include/mq/migration/, Dispatcher:
 * include/mq/runtime/). The conditions and effects are C functions, which see the state as `now`.
 *
 * The macros; run.sh says which configurations are checked:
 *
 *   P N G M            producers (1 or 2), messages of each, groups, members of each group
 *   ORDER              order = "key": one key for each producer
 *   QUIET              `quiet` is long enough, see Quiet
 *   CRASH_P CRASH_M    producers, members may be killed and started again, at any time, any number of times
 *   the operator:      by default takes one rung everywhere, and sees it reached, before the next, and turns
 *                      round only when everything is handled. With
 *     EARLY            turns round when the rung is reached everywhere, whatever is on its way
 *     HASTY            begins with the next rung when everybody has been told the one before
 *     FREE             changes flags up and down, overlapping, within two neighbouring rungs at any time
 *     JUMP             sets any flag to the rung beside its own, without regard to the others
 *   NO_...             takes a guard out
 *   a remedy that the library does not have:
 *     PRODUCER_ASKS    a producer that starts asks before its first send who listens, and whether a turn is
 *                      under way
 *
 * What is checked: whenever a broker confirms a message, every group has a queue there; when nothing moves
 * any more, every confirmed message has been handled by every group, no send waits, and every member is at its
 * rung; and with ORDER no message is handled, for the first time, after a later one of its producer.
 *
 * What is abstracted:
 *   - Which way the walk went, a member that starts between two sides reads from its messages' senders
 *     (SeenProducers::Newer): here it knows it.
 *   - Time. What the library waits for by the clock is a condition here: see Quiet and MayTurnBack. That the
 *     library turns all the same when its patience is at an end is left out.
 *   - Accepted is confirmed: a broker takes a message and confirms it at once; until then it is on the wire.
 *     A producer that is killed leaves its messages on the wire taken or lost. Repeats on the same side after
 *     a lost confirm make duplicates only, and are left out.
 *   - Handled is settled: a crash in between makes a duplicate only. Handlers do not fail.
 *   - Where order is kept, a broker gives the messages of a key to one member at a time (single active
 *     consumer, partition, message group): to another one only when the first has none unsettled there.
 *   - Brokers are up and answer. A group collects messages from its first subscription on (the harsher case:
 *     ActiveMQ, RabbitMQ without `groups`), and for ever. Backlogs are exact, or `quiet` is longer than the
 *     slowest handler.
 *   - A service produces or consumes, not both. All start at `old`, with every group subscribed there. One
 *     that is killed is back at once: what others do while it is down, they also do while it does nothing.
 */
#ifndef P
#define P 1
#endif
#ifndef N
#define N 2
#endif
#ifndef G
#define G 1
#endif
#ifndef M
#define M 2
#endif
#define MEMBERS (G * M)
#define SERVICES (MEMBERS + P) /* members first: member c is service c, producer p is service MEMBERS + p */
#define MSGS (P * N)           /* message p * N + n is the n-th of producer p */

/* Sides and rungs. */
#define OLD 0
#define NEW 1

/* A message on its way to a broker: on the wire or confirmed, + side. */
#define UNSENT 0
#define WIRE 1
#define CONFIRMED 3
#define LOST 5

/* A message in a group: what has become of it there. HELD and RUNNING: + 2 * number of the member. */
#define NONE 0
#define READY 1
#define DONE 2
#define HELD 4
#define RUNNING 5

byte flag[SERVICES];   /* Topic::policy_ */
byte stage[SERVICES];  /* Topic::stage_ */
bit toward[SERVICES];  /* Topic::toward_ */
bit attached[2 * MEMBERS]; /* SideState::attached of a member: [2 * c + side] */
bit declared[2 * G];   /* the group's queue exists on the side: [2 * g + side] */
bit route[P];          /* Router: where sends go */
bit moving[P];         /* Topic::moving_to_: sends wait */
bit lowered[P];        /* Topic::has_been_lowered_ */
bit asking[P];         /* sends wait until a service that has started knows that everybody listens */
byte sent[MSGS];
byte in_group[G * MSGS]; /* [g * MSGS + message] */
bit down;              /* the operator's direction */
bit stopped;           /* no flag changes and nothing is killed any more */
#ifdef NO_MARK
bit seen_drained[MEMBERS];
#endif

c_code {
#define Other(side) (1 - (side))
#define GroupOf(c) ((c) / M)
#define NumberOf(c) ((c) % M)
#define At(c, side) now.attached[2 * (c) + (side)]

/* ---- ladder.hpp */

int PublishSide(int rung) { return rung >= 2 ? NEW : OLD; }
int Subscribes(int rung, int side) { return rung != (side == OLD ? 3 : 0); }
int NextRung(int x) { return now.stage[x] + (now.flag[x] > now.stage[x]) - (now.flag[x] < now.stage[x]); }
int Direction(int x) { return now.flag[x] > now.stage[x] ? NEW : OLD; }
int StepSubscribes(int x, int side) {
    return !Subscribes(now.stage[x], side) && Subscribes(NextRung(x), side);
}
int StepPublishes(int x) { return PublishSide(now.stage[x]) != PublishSide(NextRung(x)); }
int StepLeaves(int x, int side) {
    return Subscribes(now.stage[x], side) && !Subscribes(NextRung(x), side);
}

/* ---- what a broker knows */

int SideOf(int m) { return (now.sent[m] - 1) % 2; }
int IsSent(int m) { return now.sent[m] != UNSENT && now.sent[m] != LOST; }
int IsConfirmed(int m) { return now.sent[m] == CONFIRMED + OLD || now.sent[m] == CONFIRMED + NEW; }
int Unsettled(int state) { return state >= HELD; }
int IsOf(int state, int c) { return Unsettled(state) && (state - HELD) / 2 == NumberOf(c); }

/* Backend::CheckBacklog as member c of the group is told it: nothing ready, nothing unsettled. */
int Drained(int c, int side) {
    int m;
    for (m = 0; m < MSGS; ++m) {
        const int state = now.in_group[GroupOf(c) * MSGS + m];
        if (!IsConfirmed(m) || SideOf(m) != side || state == DONE || state == NONE) continue;
#ifdef NO_GROUP_WIDE_DRAIN
        if (Unsettled(state) && !IsOf(state, c)) continue;
#endif
        return 0;
    }
    return 1;
}

/* CheckEverybodyListens: every group has a member that is subscribed there. */
int EverybodyListens(int side) {
#ifndef NO_LISTEN_GUARD
    int g, i, listens;
    for (g = 0; g < G; ++g) {
        listens = 0;
        for (i = 0; i < M; ++i) listens |= At(g * M + i, side);
        if (!listens) return 0;
    }
#endif
    return 1;
}

/* Topic::Quiet. The model has no clock. With QUIET, `quiet` is longer than a producer's messages keep away
 * from a side that it still publishes to, and than a message is on the wire: a side is left only when nobody
 * publishes there. Without QUIET it is no guard at all: producers that are silent for longer. */
int Quiet(int side) {
#ifdef QUIET
    int p, m;
    for (p = 0; p < P; ++p) {
        if (now.route[p] == side) return 0;
    }
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == WIRE + side) return 0;
    }
#endif
    return 1;
}

int InFlight(int p, int side) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == WIRE + side) return 1;
    }
    return 0;
}

/* ---- producers */

int NextUnsent(int p) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == UNSENT) return p * N + n;
    }
    return -1;
}

void Send(int p) {
    Printf("producer %d sends message %d to side %d\n", p, NextUnsent(p), now.route[p]);
    now.sent[NextUnsent(p)] = WIRE + now.route[p];
}

/* The next one of the connection to a side: a connection keeps its order. */
int NextOnWire(int p, int side) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == WIRE + side) return p * N + n;
    }
    return -1;
}

/* A broker takes a message: every group that it knows gets it. Promise 1: every group is known. */
int Accept(int m, int side) {
    int g, known = 1;
    Printf("side %d confirms message %d\n", side, m);
    for (g = 0; g < G; ++g) {
        if (now.declared[2 * g + side]) now.in_group[g * MSGS + m] = READY;
        else known = 0;
    }
    now.sent[m] = CONFIRMED + side;
    return known;
}

/* Topic::MayTurnBack waits by the clock until subscriptions everywhere have had the time to follow the flag
 * and to turn; here it waits until they have. A member that is told later than producers wait is what
 * NO_TURN_BACK shows. */
int MayTurnBack(int p, int side) {
#ifndef NO_TURN_BACK
    int c;
    if (side == NEW && !now.lowered[p]) return 1;
    for (c = 0; c < MEMBERS; ++c) {
        if (At(c, OLD) && At(c, NEW) && now.toward[c] != side) return 0;
    }
#endif
    return 1;
}

/* A producer that has just started asks before its first send. */
int MayStart(int p) {
    int c;
    if (!EverybodyListens(now.route[p])) return 0;
#if defined(ORDER) && !defined(NO_TURN_BACK)
    if (now.flag[MEMBERS + p] == 0 || now.flag[MEMBERS + p] == 3) return 1;
    for (c = 0; c < MEMBERS; ++c) {
        if (!At(c, OLD) || !At(c, NEW) || now.toward[c] == now.route[p]) continue;
        if (now.stage[c] != now.flag[c]) return 0;
        if (now.down ? now.flag[c] > now.flag[MEMBERS + p] : now.flag[c] < now.flag[MEMBERS + p]) return 0;
    }
#endif
    return 1;
}

/* ---- members */

/* Topic::Held: which side's messages wait; -1 where none. */
int HeldSide(int c) {
#if defined(ORDER) && !defined(NO_HOLD)
    if (At(c, OLD) && At(c, NEW)) return now.toward[c];
#endif
    return -1;
}

int HasHeld(int c, int side) {
    int m;
    for (m = 0; m < MSGS; ++m) {
        if (SideOf(m) == side && now.in_group[GroupOf(c) * MSGS + m] == HELD + 2 * NumberOf(c)) return 1;
    }
    return 0;
}

/* Dispatcher::Admit: a message goes into the lane of its key. A lane is handled in the order of admission,
 * so that one which is admitted behind a later one has lost its place. */
int Admit(int c, int m) {
    uchar* const states = &now.in_group[GroupOf(c) * MSGS];
    int later, in_place = 1;
#ifdef ORDER
    for (later = m + 1; later < (m / N + 1) * N; ++later) {
        if (states[later] == RUNNING + 2 * NumberOf(c)) in_place = 0;
    }
#endif
    states[m] = RUNNING + 2 * NumberOf(c);
    return in_place;
}

/* Dispatcher::SetHold(side, false), Dispatcher::Release. */
int Release(int c, int side) {
    int m, in_place = 1;
    for (m = 0; m < MSGS; ++m) {
        if (SideOf(m) == side && now.in_group[GroupOf(c) * MSGS + m] == HELD + 2 * NumberOf(c)) {
            in_place &= Admit(c, m);
        }
    }
    return in_place;
}

/* Topic::ApplyHold. */
int ApplyHold(int c) {
    int side, in_place = 1;
    for (side = OLD; side <= NEW; ++side) {
        if (HeldSide(c) != side) in_place &= Release(c, side);
    }
    return in_place;
}

/* The message of producer p that the broker would give to member c on that side. */
int Takeable(int c, int side, int p) {
    const uchar* const states = &now.in_group[GroupOf(c) * MSGS];
    int m, first = -1;
    if (!At(c, side)) return -1;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (!IsConfirmed(m) || SideOf(m) != side) continue;
        if (states[m] == READY && first < 0) first = m;
#ifdef ORDER
        if (Unsettled(states[m]) && !IsOf(states[m], c)) return -1;
#endif
    }
    return first;
}

int Take(int c, int side, int m) {
    Printf("member %d takes message %d from side %d%s\n", c, m, side,
           HeldSide(c) == side ? " and holds it" : "");
    if (HeldSide(c) != side) return Admit(c, m);
    now.in_group[GroupOf(c) * MSGS + m] = HELD + 2 * NumberOf(c);
    return 1;
}

/* The head of the lane of producer p's key. */
int Head(int c, int p) {
    int m;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (now.in_group[GroupOf(c) * MSGS + m] == RUNNING + 2 * NumberOf(c)) return m;
    }
    return -1;
}

/* The handler returns, and the message is settled. Promise 3: no later one was handled before. */
int Handle(int c, int m) {
    uchar* const states = &now.in_group[GroupOf(c) * MSGS];
    int later, in_order = 1;
    Printf("member %d has handled message %d\n", c, m);
    states[m] = DONE;
#ifdef ORDER
    for (later = m + 1; later < (m / N + 1) * N; ++later) {
        if (states[later] == DONE) in_order = 0;
    }
#endif
    return in_order;
}

/* Topic::MayTurn. */
int MayTurn(int c, int side) {
#ifndef NO_TURN_RULE
    if (HeldSide(c) < 0) return 1;
    if (Drained(c, side)) return 1;
#ifdef NO_QUIET_TURN
    return Drained(c, Other(side));
#else
    return Drained(c, Other(side)) && Quiet(Other(side));
#endif
#else
    return 1;
#endif
}

/* Topic::Turn has nothing left to do. */
int Turned(int c) { return now.toward[c] == Direction(c); }

void Attach(int c, int side) {
    At(c, side) = 1;
    now.declared[2 * GroupOf(c) + side] = 1;
}

/* Topic::NextGoal: a side is to be left, as a step or because the rung does not need it. */
int WantsToLeave(int c, int side) {
    if (now.flag[c] != now.stage[c]) return StepLeaves(c, side) && Turned(c);
    return At(c, side) && !Subscribes(now.stage[c], side);
}

/* Topic::TryLeave and Topic::Leave; the second look makes them one. */
int MayLeave(int c, int side) {
#ifdef NO_DRAIN_GUARD
    return Quiet(side);
#else
    return Drained(c, side) && Quiet(side);
#endif
}

int Leave(int c, int side) {
    int m;
    for (m = 0; m < MSGS; ++m) { /* without the guard: what is unsettled goes back */
        uchar* const state = &now.in_group[GroupOf(c) * MSGS + m];
        if (IsConfirmed(m) && SideOf(m) == side && IsOf(*state, c)) *state = READY;
    }
    At(c, side) = 0;
    return ApplyHold(c);
}

/* A member at rest looks once in a while at the side that it has left; what is there brings it back. */
int SeesLateArrivals(int c, int side) {
#ifdef NO_RESUBSCRIBE
    return 0;
#else
    return now.flag[c] == now.stage[c] && !At(c, side) && !Drained(c, side);
#endif
}

/* Killed, and started again: what is unsettled goes back to its place, and Topic's constructor begins at
 * the flag. */
void RestartMember(int c) {
    int m, side;
    for (m = 0; m < MSGS; ++m) {
        uchar* const state = &now.in_group[GroupOf(c) * MSGS + m];
        if (IsOf(*state, c)) *state = READY;
    }
#ifdef NO_DIRECTION
    now.toward[c] = NEW;
#else
    if (now.flag[c] != now.stage[c]) now.toward[c] = Direction(c);
#endif
    now.stage[c] = now.flag[c];
    if (now.flag[c] == 0) now.toward[c] = OLD;
    if (now.flag[c] == 3) now.toward[c] = NEW;
    for (side = OLD; side <= NEW; ++side) {
        At(c, side) = 0;
        if (Subscribes(now.stage[c], side)) Attach(c, side);
#ifndef NO_MEMBER_ASKS
        else if (!Drained(c, side)) Attach(c, side);  // Topic::HasAskedForOlder
#endif
    }
    Printf("member %d is killed, and starts again at rung %d, toward side %d\n", c, now.stage[c],
           now.toward[c]);
}

void RestartProducer(int p) {
    now.stage[MEMBERS + p] = now.flag[MEMBERS + p];
    now.route[p] = PublishSide(now.stage[MEMBERS + p]);
    now.moving[p] = 0;
#ifdef NO_LOWERED_START
    now.lowered[p] = 0;
#else
    now.lowered[p] = now.stage[MEMBERS + p] % 3 != 0;  // at a middle rung
#endif
#ifdef PRODUCER_ASKS
    now.asking[p] = 1;
#endif
    Printf("producer %d is killed, and starts again at rung %d\n", p, now.stage[MEMBERS + p]);
}

/* ---- the operator */

/* Whether the operator may turn round. */
int Settled(void) {
    int x, m, g, side;
    for (x = 0; x < SERVICES; ++x) {
        if (now.flag[x] != now.flag[0] || now.stage[x] != now.flag[x]) return 0;
    }
#ifdef EARLY
    return 1;
#endif
    for (x = 0; x < MEMBERS; ++x) {
        for (side = OLD; side <= NEW; ++side) {
            if (At(x, side) != Subscribes(now.stage[x], side)) return 0;
        }
    }
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == WIRE + OLD || now.sent[m] == WIRE + NEW) return 0;
        for (g = 0; g < G; ++g) {
            if (IsConfirmed(m) && now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
    return 1;
}

/* Whether the operator may tell a service this rung now: but for JUMP, nobody is told a third one. */
int MayFlip(int x, int rung) {
    int other, reached = 1, begun = 0;
    if (now.stopped || rung < 0 || rung > 3) return 0;
#ifndef JUMP
#ifndef FREE
    if (now.down == (rung > now.flag[x])) return 0;
#endif
    for (other = 0; other < SERVICES; ++other) {
#if !defined(FREE) && !defined(HASTY)
        if (now.flag[other] != rung && now.stage[other] != now.flag[other]) reached = 0;
#endif
        if (other != x && now.flag[other] != now.flag[x] && now.flag[other] != rung) return 0;
        begun |= now.flag[other] == rung;
    }
#endif
    return begun || reached;
}

void Flip(int x, int rung) {
    if (x >= MEMBERS && rung < now.flag[x]) now.lowered[x - MEMBERS] = 1;
    now.flag[x] = rung;
    Printf("%s %d is told rung %d\n", x < MEMBERS ? "member" : "producer",
           x < MEMBERS ? x : x - MEMBERS, rung);
}

/* When nothing moves any more: every confirmed message is handled by every group, no send waits, and every
 * walk is at its end (but for producers, who may wait for members that stay on another rung to turn). */
int AllIsWell(void) {
    int x, m, g;
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == LOST || (now.sent[m] == UNSENT && now.asking[m / N])) continue;
        if (!IsConfirmed(m)) return 0;
        for (g = 0; g < G; ++g) {
            if (now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
#ifndef JUMP
    for (x = 0; x < MEMBERS; ++x) {
        if (now.stage[x] != now.flag[x]) return 0;
    }
#endif
    return 1;
}
}

#define EACH_SIDE(DO) DO(OLD) DO(NEW)
#if P == 1
#define EACH_PRODUCER(DO) DO(0)
#else
#define EACH_PRODUCER(DO) DO(0) DO(1)
#endif

bit ok = 1; /* scratch: the answer of the transition that is under way; always 1 in between */

/* Topic::SetPolicy, Topic::Configure */
#define TOLD(x, change) \
    :: d_step { c_expr { (MayFlip(x, now.flag[x] change)) } -> c_code { Flip(x, now.flag[x] change); } }

proctype Producer(byte p) {
    byte x = MEMBERS + p;
end: do
    TOLD(PProducer->x, + 1)
    TOLD(PProducer->x, - 1)

    /* Router::Send */
    :: d_step { c_expr { (NextUnsent(PProducer->p) >= 0 && !now.moving[PProducer->p] &&
                         !now.asking[PProducer->p]) } ->
        c_code { Send(PProducer->p); } }

#define ACCEPT(side) \
    :: d_step { c_expr { (NextOnWire(PProducer->p, side) >= 0) } -> \
        c_code { now.ok = Accept(NextOnWire(PProducer->p, side), side); }; \
        assert(ok) /* a confirmed message that a group never gets */ }
    EACH_SIDE(ACCEPT)

    /* Topic::TrySubscribe and Topic::TryLeave without a subscription */
    :: d_step { c_expr { (now.flag[PProducer->x] != now.stage[PProducer->x] && !StepPublishes(PProducer->x) &&
                         !(StepLeaves(PProducer->x, OLD) && InFlight(PProducer->p, OLD)) &&
                         !(StepLeaves(PProducer->x, NEW) && InFlight(PProducer->p, NEW))) } ->
        c_code { now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d reaches rung %d\n", p, stage[x]) }

    :: d_step { c_expr { (now.asking[PProducer->p] && MayStart(PProducer->p)) } ->
        asking[p] = 0 }

    /* Topic::TryPublish: the guard, then the sender's fence */
    :: d_step { c_expr { (!now.moving[PProducer->p] && now.flag[PProducer->x] != now.stage[PProducer->x] &&
                         StepPublishes(PProducer->x) && EverybodyListens(Other(now.route[PProducer->p])) &&
#ifdef ORDER
                         MayTurnBack(PProducer->p, Other(now.route[PProducer->p])) &&
#endif
                         1) } ->
        c_code { now.moving[PProducer->p] = 1; };
        printf("producer %d holds its sends to move\n", p) }
    :: d_step { c_expr { (now.moving[PProducer->p] && StepPublishes(PProducer->x) &&
#if defined(ORDER) && !defined(NO_SENDER_FENCE)
                         !InFlight(PProducer->p, now.route[PProducer->p]) &&
#endif
                         1) } ->
        c_code { now.moving[PProducer->p] = 0;
                 now.route[PProducer->p] = Other(now.route[PProducer->p]);
                 now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d publishes to side %d at rung %d\n", p, route[p], stage[x]) }
    /* Topic::CallOffMove */
    :: d_step { c_expr { (now.moving[PProducer->p] && !StepPublishes(PProducer->x)) } ->
        c_code { now.moving[PProducer->p] = 0; };
        printf("producer %d calls its move off\n", p) }

#ifdef CRASH_P
    /* Killed, and started again: what is on the wire arrives, or never does. */
#define LOSE(side) \
    :: d_step { c_expr { (!now.stopped && NextOnWire(PProducer->p, side) >= 0) } -> \
        c_code { int n; \
                 for (n = 0; n < N; ++n) { \
                     int m = PProducer->p * N + n; \
                     if (now.sent[m] == WIRE + OLD || now.sent[m] == WIRE + NEW) now.sent[m] = LOST; \
                 } \
                 RestartProducer(PProducer->p); }; \
        }
    EACH_SIDE(LOSE)
    :: d_step { c_expr { (!now.stopped && !InFlight(PProducer->p, OLD) && !InFlight(PProducer->p, NEW)) } ->
        c_code { RestartProducer(PProducer->p); };
        }
#endif
    od
}

proctype Member(byte c) {
end: do
    TOLD(PMember->c, + 1)
    TOLD(PMember->c, - 1)

    /* SideReceiver::OnDelivery, Dispatcher::Offer */
#define TAKE_OLD(p) TAKE(OLD, p)
#define TAKE_NEW(p) TAKE(NEW, p)
#define TAKE(side, p) \
    :: d_step { c_expr { (Takeable(PMember->c, side, p) >= 0) } -> \
        c_code { now.ok = Take(PMember->c, side, Takeable(PMember->c, side, p)); }; \
        assert(ok) /* order: a later message of the key is in the lane */ }
    EACH_PRODUCER(TAKE_OLD)
    EACH_PRODUCER(TAKE_NEW)

    /* Dispatcher::Run, Item::Ack */
#define HANDLE(p) \
    :: d_step { c_expr { (Head(PMember->c, p) >= 0) } -> \
        c_code { now.ok = Handle(PMember->c, Head(PMember->c, p)); }; \
        assert(ok) /* order: a later message of the key was handled before */ }
    EACH_PRODUCER(HANDLE)

    /* Topic::TendHeld: the mark is taken before the question is asked; here both are one. */
#ifndef NO_MARK
    :: d_step { c_expr { (HeldSide(PMember->c) >= 0 && HasHeld(PMember->c, HeldSide(PMember->c)) &&
                         Drained(PMember->c, Other(HeldSide(PMember->c)))) } ->
        c_code { now.ok = Release(PMember->c, HeldSide(PMember->c)); };
        printf("member %d lets go of what it held\n", c); assert(ok) }
#else
    :: d_step { c_expr { (HeldSide(PMember->c) >= 0 && HasHeld(PMember->c, HeldSide(PMember->c)) &&
                         !now.seen_drained[PMember->c] &&
                         Drained(PMember->c, Other(HeldSide(PMember->c)))) } ->
        seen_drained[c] = 1; printf("member %d sees the other side drained\n", c) }
    :: d_step { c_expr { (now.seen_drained[PMember->c]) } ->
        c_code { now.seen_drained[PMember->c] = 0;
                 if (HeldSide(PMember->c) >= 0) now.ok = Release(PMember->c, HeldSide(PMember->c)); };
        printf("member %d lets go of what it holds by now\n", c); assert(ok) }
#endif

    /* Topic::Turn */
    :: d_step { c_expr { (now.flag[PMember->c] != now.stage[PMember->c] && !Turned(PMember->c) &&
                         MayTurn(PMember->c, Direction(PMember->c))) } ->
        c_code { now.toward[PMember->c] = Direction(PMember->c); now.ok = ApplyHold(PMember->c); };
        printf("member %d turns toward side %d\n", c, toward[c]); assert(ok) }

    /* Topic::TrySubscribe */
#define SUBSCRIBE(side) \
    :: d_step { c_expr { (StepSubscribes(PMember->c, side) && Turned(PMember->c) && \
                         !At(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d subscribes to side %d\n", c, side) } \
    :: d_step { c_expr { (StepSubscribes(PMember->c, side) && Turned(PMember->c) && At(PMember->c, side)) } -> \
        c_code { now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d reaches rung %d\n", c, stage[c]) }
    EACH_SIDE(SUBSCRIBE)

    /* Topic::TryPublish, in a service that does not publish */
    :: d_step { c_expr { (StepPublishes(PMember->c) && Turned(PMember->c) &&
                         EverybodyListens(PublishSide(NextRung(PMember->c)))) } ->
        c_code { now.stage[PMember->c] = NextRung(PMember->c); };
        printf("member %d reaches rung %d\n", c, stage[c]) }

    /* Topic::TryLeave, Topic::Leave */
#define LEAVE(side) \
    :: d_step { c_expr { (WantsToLeave(PMember->c, side) && MayLeave(PMember->c, side)) } -> \
        c_code { now.ok = Leave(PMember->c, side); \
                 now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d leaves side %d\n", c, side); assert(ok) }
    EACH_SIDE(LEAVE)

    /* Late arrivals bring a member back. */
#define RESUBSCRIBE(side) \
    :: d_step { c_expr { (SeesLateArrivals(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d comes back to side %d\n", c, side) }
    EACH_SIDE(RESUBSCRIBE)

#ifdef CRASH_M
    :: d_step { !stopped -> c_code { RestartMember(PMember->c); } }
#endif
    od
}

proctype Operator() {
    do
    :: stopped -> break
    :: atomic { !stopped -> stopped = 1; printf("no flag changes any more\n"); break }
#if !defined(FREE) && !defined(JUMP)
    :: d_step { c_expr { (Settled()) } -> down = 1 - down; printf("the operator turns round\n") }
#endif
    od;
    timeout ->
    c_code { now.ok = AllIsWell(); };
    assert(ok) /* something confirmed is left, or something waits for ever */
}

init {
    byte i;
    atomic {
        for (i : 0 .. MEMBERS - 1) {
            attached[2 * i + OLD] = 1;
            declared[2 * (i / M) + OLD] = 1;
            run Member(i)
        }
        for (i : 0 .. P - 1) { run Producer(i) }
        for (i : 0 .. SERVICES - 1) { toward[i] = NEW }
        i = 0;
        run Operator()
    }
}
