import { useChat } from '@ai-sdk/react';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { ParleyError, ParleyTransport, type ParleyMessage } from './transport';

const parley = new URLSearchParams(location.search).get('parley') ?? 'http://localhost:8000';
const transport = new ParleyTransport(`${parley}/chat`);

function Message({ message: { role, parts, metadata }, ended }: { message: ParleyMessage; ended: boolean }) {
  const reason = metadata?.finish_reason;
  return (
    <article className={role}>
      {parts.map((part, index) => {
        if (part.type === 'text') return <p key={index}>{part.text}</p>;
        if (part.type === 'reasoning') return <blockquote key={index}>{part.text}</blockquote>;
      })}
      {role === 'assistant' && ended && reason !== 'stop' && (
        <small>The answer is incomplete{reason && `: ${reason}`}. [{metadata?.correlation_id}]</small>
      )}
    </article>
  );
}

function Chat() {
  const { messages, sendMessage, regenerate, status, stop, error } = useChat({ transport });
  const [reasoning, setReasoning] = useState(false);
  const busy = status === 'submitted' || status === 'streaming';
  const body = reasoning ? { include_reasoning: true } : {}; // any field of Parley's request, such as `max_output_tokens`

  useEffect(() => {
    addEventListener('pagehide', stop); // otherwise, the browser may keep the page, and the model runs on
    return () => removeEventListener('pagehide', stop);
  }, [stop]);

  return (
    <>
      {messages.map((message, index) => (
        <Message key={message.id} message={message} ended={!busy || index < messages.length - 1} />
      ))}
      {error && <p role="alert">{error.message}</p>}
      {error && !(error instanceof ParleyError && !error.problem.retryable) && (
        <button onClick={() => regenerate({ body })}>Ask again</button>
      )}
      <form action={(form) => void sendMessage({ text: String(form.get('message')) }, { body })}>
        <input name="message" aria-label="Message" required />
        <button disabled={busy}>Send</button>
        <button type="button" disabled={!busy} onClick={stop}>Stop</button>
        <label><input type="checkbox" checked={reasoning} onChange={() => setReasoning(!reasoning)} /> Show the reasoning</label>
      </form>
      <output>{status}</output>
    </>
  );
}

createRoot(document.querySelector('main')!).render(<Chat />);
