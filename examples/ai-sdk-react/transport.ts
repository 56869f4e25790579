import type { ChatTransport, FinishReason, UIMessage, UIMessageChunk } from 'ai';
import { EventSourceParserStream, type EventSourceMessage } from 'eventsource-parser/stream';

type Problem = { code: string; detail: string; correlation_id: string; retryable: boolean; retry_after_s: number | null };
type Chunk =
  | { type: 'start'; model: string; correlation_id: string }
  | { type: 'reasoning' | 'text'; text: string }
  | { type: 'done'; finish_reason: string; usage: object }
  | { type: 'error'; error: Problem };

/** The `metadata` of an answer, which is complete only if `finish_reason` is `stop`. */
export type Metadata = { model?: string; correlation_id?: string; finish_reason?: string; usage?: object };
export type ParleyMessage = UIMessage<Metadata>;

export class ParleyError extends Error {
  constructor(readonly problem: Problem) {
    super(`${problem.code}: ${problem.detail} [${problem.correlation_id}]`);
  }
}

export class ParleyTransport implements ChatTransport<ParleyMessage> {
  constructor(private readonly url: string) {}

  sendMessages: ChatTransport<ParleyMessage>['sendMessages'] = async ({ messages, abortSignal, headers, body }) => {
    const turns = messages
      .filter(({ role }) => role !== 'system') // the operator sets the system prompt
      .map(({ role, parts }) => ({ role, content: parts.map((part) => (part.type === 'text' ? part.text : '')).join('') }));
    const response = await fetch(this.url, {
      method: 'POST',
      headers: { ...Object.fromEntries(new Headers(headers)), 'Content-Type': 'application/json' },
      body: JSON.stringify({ ...body, message: turns.at(-1)?.content, history: turns.slice(-201, -1) }),
      signal: abortSignal, // closing the connection stops the model
    });
    if (!response.ok || !response.body) {
      const problem: Problem | undefined = await response.json().catch(() => undefined); // a proxy's error is HTML
      throw problem?.code ? new ParleyError(problem) : new Error(`HTTP ${response.status}, not from Parley`);
    }
    const text = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(impatient());
    return text.pipeThrough(new EventSourceParserStream()).pipeThrough(translated());
  };

  reconnectToStream = async () => null; // Parley cannot resume a stream
}

/** Fails if nothing arrives for three of Parley's heartbeats: the connection is dead, and the browser would wait for minutes. */
function impatient(): TransformStream<string, string> {
  let timer: ReturnType<typeof setTimeout>;
  const wait = (controller: TransformStreamDefaultController) => {
    clearTimeout(timer);
    timer = setTimeout(() => controller.error(new TypeError('The network connection is dead.')), 12_000);
  };
  return new TransformStream({
    start: wait,
    transform(text, controller) {
      wait(controller);
      controller.enqueue(text);
    },
    flush: () => clearTimeout(timer),
  });
}

const REASONS: Record<string, FinishReason> = { stop: 'stop', length: 'length', content_filter: 'content-filter' };

function translated(): TransformStream<EventSourceMessage, UIMessageChunk> {
  let open: 'reasoning' | 'text' | undefined;
  return new TransformStream({
    transform({ data }, controller) {
      const chunk: Chunk = JSON.parse(data);
      if (open && open !== chunk.type) {
        controller.enqueue({ type: `${open}-end`, id: open });
        open = undefined;
      }
      if (chunk.type === 'start') {
        const { model, correlation_id } = chunk;
        controller.enqueue({ type: 'start', messageMetadata: { model, correlation_id } });
      } else if (chunk.type === 'reasoning' || chunk.type === 'text') {
        if (!open) controller.enqueue({ type: `${chunk.type}-start`, id: chunk.type });
        open = chunk.type;
        controller.enqueue({ type: `${open}-delta`, id: open, delta: chunk.text });
      } else if (chunk.type === 'error') {
        controller.error(new ParleyError(chunk.error));
      } else if (chunk.type === 'done') {
        const { finish_reason, usage } = chunk;
        const finishReason = REASONS[finish_reason] ?? 'other';
        controller.enqueue({ type: 'finish', finishReason, messageMetadata: { finish_reason, usage } });
        controller.terminate();
      }
    },
    flush: (controller) => controller.error(new TypeError('The network connection ended before the answer did.')),
  });
}
